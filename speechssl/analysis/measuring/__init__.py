"""Which measures are taken of a model's features, and what they are called: plain numbers in, `Measure`s out."""
