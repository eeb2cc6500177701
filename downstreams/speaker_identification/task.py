"""Speaker identification: who of the speakers of training it is."""

from speechssl.classification.task import Classification


class SpeakerIdentification(Classification):
    """SUPERB's speaker identification."""

    name = "speaker_identification"


TASK = SpeakerIdentification
