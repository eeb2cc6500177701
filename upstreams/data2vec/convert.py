"""The formats that data2vec comes in.

transformers says of its positions `num_conv_pos_embeddings` = how many convolutions and `conv_pos_kernel_size` = frames
that each sees, where its other models say `num_conv_pos_embeddings` = frames; norms it has only one way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.formats import ContextualFormats
from speechssl.errors import ConfigError
from speechssl.formats import ForeignModel, TransformersFolder
from upstreams.data2vec.config import Data2VecConfig

THEIRS = "encoder.pos_conv_embed.layers."
OURS = "encoder.position.convs."
NORMS = {"feat_extract_norm": "layer", "do_stable_layer_norm": False}


@dataclass(frozen=True, kw_only=True)
class Data2VecFormats(ContextualFormats):
    """What differs from the other models of the architecture: how positions are described and named."""

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """See `speechssl.contextual.transformers_format`."""
        given = folder.description
        description = {**given, **NORMS, "num_conv_pos_embeddings": given["conv_pos_kernel_size"]}
        made = super().read_transformers(replace(folder, description=description))
        config = replace(made.config, pos_depth=given["num_conv_pos_embeddings"], feature_grad_mult=1.0)
        return replace(made, config=config, state={_rename_layer(k): v for k, v in made.state.items()})

    def write_transformers(self, config: ContextualConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """See `speechssl.contextual.transformers_format`."""
        if config.conv_norm != "layer" or config.pre_norm or config.pos_depth < 2:
            raise ConfigError(
                "transformers has no Data2VecAudioModel with `conv_norm` 'group', `pre_norm` or fewer than two "
                "positional convolutions: export to 'speechssl' instead."
            )
        folder = super().write_transformers(replace(config, pos_depth=1), state)
        description = {key: value for key, value in folder.description.items() if key not in NORMS}
        description |= {"num_conv_pos_embeddings": config.pos_depth, "conv_pos_kernel_size": config.pos_kernel}
        renamed = {_rename_conv(key): value for key, value in folder.state.items()}
        return replace(folder, description=description, state=renamed)


def _rename_layer(key: str) -> str:
    if not key.startswith(THEIRS):
        return key
    index, _, rest = key.removeprefix(THEIRS).partition(".conv.")
    return f"{OURS}{index}.{rest}"


def _rename_conv(key: str) -> str:
    if not key.startswith(OURS):
        return key
    index, _, rest = key.removeprefix(OURS).partition(".")
    return f"{THEIRS}{index}.conv.{rest}"


FORMATS = Data2VecFormats(
    config=Data2VecConfig,
    model_types=("data2vec-audio",),
    architecture="Data2VecAudioModel",
    heads=("lm_head.", "projector.", "classifier.", "layer_weights"),
    fairseq_names=("data2vec_audio",),
    fairseq_heads=("final_proj.", "num_updates"),
)
