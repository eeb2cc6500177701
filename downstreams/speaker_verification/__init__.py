"""Speaker verification: do two utterances have one speaker?"""
