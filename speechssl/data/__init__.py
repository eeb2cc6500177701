"""Corpora, batching and collation; manifests are Lhotse CutSets on disk and `Utterance`s in memory."""
