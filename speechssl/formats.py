"""What a family says about its checkpoints in other toolkits' formats: the base of the FORMATS in its `convert.py`.

A format is found out from a checkpoint's content, never from its file's name: `load_upstream` asks one family after the
other whether the content is its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.errors import SpeechsslError


@dataclass(frozen=True)
class ForeignModel:
    """A checkpoint of another toolkit, in our terms."""

    config: Any
    """The family's frozen config."""
    state: Mapping[str, Tensor]
    """Weights by our names; heads of pre-training and of tasks are left out."""
    optional: frozenset[str] = frozenset()
    """Of our names, those that may be absent, since nothing but training uses them."""
    their_name: Callable[[str], str] = str
    """From our name of a weight to the one in the checkpoint, for errors; names that nobody knows stay."""


@dataclass(frozen=True)
class TransformersFolder:
    """What a folder of transformers' format holds."""

    description: Mapping[str, Any]
    """config.json."""
    state: Mapping[str, Tensor]
    """model.safetensors; empty where only the config is of interest."""
    preprocessor: Mapping[str, Any]
    """preprocessor_config.json; empty where there is none."""
    origin: str = "the folder"
    """Named in errors."""

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, such as 'wav2vec2'."""
        return str(self.description.get("model_type", ""))


class Formats:
    """The formats of one family; each overrides what it has."""

    model_types: tuple[str, ...] = ()
    """The family's names in `model_type` of transformers' config.json."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:  # noqa: ARG002
        """Reads a checkpoint that is one file.

        Args:
            content: what `speechssl.pickled.read_pickled` made of it: tensors and plain containers.
            origin: named in errors.

        Returns:
            None where the content is another family's, decided by what it holds.

        Raises:
            SpeechsslError: it is this family's, but damaged, or has a part that is not supported.
        """
        return None

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """Reads a folder whose model type is in `model_types`.

        Raises:
            SpeechsslError: it has a part that is not supported.
        """
        raise SpeechsslError(f"Models of type '{folder.model_type}' can't be read: see `speechssl list`.")

    def write_transformers(self, config: Any, state: Mapping[str, Tensor]) -> TransformersFolder:  # noqa: ARG002
        """Writes what `transformers` itself loads to the same numbers.

        Args:
            config: the family's.
            state: weights by our names.

        Raises:
            SpeechsslError: transformers has no such model.
        """
        raise SpeechsslError("transformers has no such model: export to 'speechssl' instead.")
