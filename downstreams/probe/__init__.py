"""A probe: a small head that tells one label of any corpus, a class or a number, of utterances or of parts of them."""
