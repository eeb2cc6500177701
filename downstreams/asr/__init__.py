"""Speech recognition with characters and CTC."""
