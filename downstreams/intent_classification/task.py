"""Intent classification: action, object and location of a spoken command."""

from speechssl.classification.task import Classification


class IntentClassification(Classification):
    """SUPERB's intent classification."""

    name = "intent_classification"


TASK = IntentClassification
