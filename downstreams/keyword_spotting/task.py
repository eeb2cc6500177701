"""Keyword spotting: which of a few words is said in a second of audio."""

from speechssl.classification.task import Classification


class KeywordSpotting(Classification):
    """SUPERB's keyword spotting."""

    name = "keyword_spotting"


TASK = KeywordSpotting
