"""Mixtures of a corpus' own utterances, for tasks whose published corpora are not at hand."""
