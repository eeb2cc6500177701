"""Audio-MAE: a vision transformer trained to rebuild spectrograms of which it sees a fifth."""
