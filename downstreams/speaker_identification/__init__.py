"""Speaker identification: who of the speakers of training it is."""
