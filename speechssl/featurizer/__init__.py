"""From the hidden states of an upstream to the features that a head sees."""
