"""The SUPERB benchmark: which tasks, on which corpora, and how their numbers become one score."""
