"""What pre-training predicts: labels made from features."""
