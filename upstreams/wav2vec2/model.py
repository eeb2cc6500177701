"""wav2vec 2.0: the shared architecture under its first name."""

from pathlib import Path

from speechssl.checkpoint import load_weights
from speechssl.contextual.model import ContextualUpstream
from speechssl.errors import SpeechsslError
from upstreams.wav2vec2.adapters import read_adapter
from upstreams.wav2vec2.config import Wav2Vec2Config


class Wav2Vec2Upstream(ContextualUpstream):
    """A wav2vec 2.0 model.

    Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477.
    """

    name = "wav2vec2"
    family = "wav2vec2"

    def load_adapter(self, path: str | Path, *, language: str | None = None) -> None:
        """Puts the adapter of another language into a model that has one, as the MMS models have.

        Args:
            path: adapter.LANGUAGE.safetensors, a folder with such files, or a checkpoint of fairseq with all of them.
            language: such as 'fra', where `path` holds several.

        Raises:
            UnknownNameError: no such language there.
            SpeechsslError: the model has no adapters, or the file has others.
        """
        own = {key for key in self.state_dict() if ".adapter." in key}
        if not own:
            raise SpeechsslError(f"'{self.name}' has no adapters: load a model that has, such as wav2vec2_mms_1b_all.")
        weights = read_adapter(Path(path).expanduser(), language)
        load_weights(self, weights, origin=str(path), optional=frozenset(self.state_dict().keys() - own))
        self.weights = f"{self.weights}, adapter {language or Path(path).name}"


def build(config: Wav2Vec2Config) -> Wav2Vec2Upstream:
    """Makes the model with random weights."""
    return Wav2Vec2Upstream(config)
