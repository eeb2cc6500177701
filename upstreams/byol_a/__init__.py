"""BYOL-A: a convolutional network that learns what two views of a sound have in common."""
