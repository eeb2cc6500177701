"""The architecture that wav2vec and vq-wav2vec share: convolutions on the waveform, then convolutions over frames."""
