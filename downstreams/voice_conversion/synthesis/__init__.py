"""Recognition-synthesis: a network that says the features of an upstream in one voice, or in that of an embedding."""
