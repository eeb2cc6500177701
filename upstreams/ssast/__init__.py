"""SSAST: a spectrogram transformer trained to tell and rebuild its masked patches."""
