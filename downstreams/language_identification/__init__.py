"""Language identification: which of the languages of training is spoken."""
