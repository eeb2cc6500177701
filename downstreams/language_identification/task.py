"""Language identification: which of the languages of training is spoken."""

from speechssl.classification.task import Classification


class LanguageIdentification(Classification):
    """Which language is spoken."""

    name = "language_identification"


TASK = LanguageIdentification
