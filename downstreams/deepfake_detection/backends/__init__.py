"""Networks that judge the features of an utterance, as published for the detection of spoofed speech."""
