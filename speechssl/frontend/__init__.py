"""What turns a waveform into the first sequence of features: convolutions, log-mel filterbanks, MFCC."""
