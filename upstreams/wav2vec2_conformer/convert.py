"""The formats that wav2vec 2.0 conformer models come in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from speechssl.contextual import fairseq_names, transformers_format
from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.formats import ContextualFormats
from speechssl.encoder import conformer_names
from speechssl.errors import ConfigError
from speechssl.fairseq_format import FairseqCheckpoint, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, TransformersFolder
from upstreams.wav2vec2_conformer.config import Wav2Vec2ConformerConfig

FAIRSEQ_POSITIONS: dict[str, Literal["relative", "rotary"]] = {"rel_pos": "relative", "rope": "rotary"}
HEADS = ("quantizer.", "project_hid.", "project_q.", "lm_head.", "projector.", "classifier.", "layer_weights")
UNUSED = ("encoder.pos_conv", "encoder.embed_positions.", "encoder.position.")
"""Of the encoder, weights that neither toolkit computes with, and tables that are made from the settings."""


@dataclass(frozen=True, kw_only=True)
class ConformerFormats(ContextualFormats):
    """wav2vec 2.0's formats, with conformer blocks."""

    def is_own(self, checkpoint: FairseqCheckpoint) -> bool:
        """fairseq calls these models 'wav2vec2' too; the type of their layers tells them apart."""
        return checkpoint.architecture in self.fairseq_names and checkpoint.model.get("layer_type") == "conformer"

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of fairseq."""
        if not is_fairseq(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if not self.is_own(checkpoint):
            return None
        model = checkpoint.model
        needed = {"attn_type": ("espnet",), "pos_enc_type": tuple(FAIRSEQ_POSITIONS), "layer_norm_first": (True,)}
        for key, values in needed.items():
            if model.get(key) not in values:
                found, allowed = model.get(key), " or ".join(repr(v) for v in values)
                raise ConfigError(f"`{key}` of {origin} is {found!r}; of a conformer only {allowed} is supported.")
        # A conformer's blocks use swish whatever fairseq's `activation_fn` says, and no positional convolution.
        plain = replace(checkpoint, model={**model, "activation_fn": "gelu", "pos_conv_depth": 1})
        config = fairseq_names.config_from_fairseq(plain, Wav2Vec2ConformerConfig, origin=origin)
        dropout = float(model.get("dropout", 0.1))  # one for everything in a block
        config = replace(
            config,
            positions=FAIRSEQ_POSITIONS[model["pos_enc_type"]],
            block_kernel=int(model.get("depthwise_conv_kernel_size", 31)),
            attention_dropout=dropout,
            activation_dropout=dropout,
            conv_dropout=dropout,
        )
        blocks = conformer_names.from_fairseq({k: v for k, v in checkpoint.state.items() if "rotary_emb" not in k})
        rest = {k: v for k, v in blocks.items() if not k.startswith("encoder.blocks.")}
        state = fairseq_names.rename_weights(rest, heads=(*self.fairseq_heads, *UNUSED))
        return ForeignModel(config, state | {k: v for k, v in blocks.items() if k not in rest}, self.optional)

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """Reads a folder of transformers' format."""
        theirs = folder.description
        if theirs.get("hidden_act") not in ("swish", "silu"):
            raise ConfigError(f"`hidden_act` of {folder.origin} must be 'swish', but is {theirs.get('hidden_act')!r}.")
        plain = replace(folder, description={**theirs, "hidden_act": "gelu", "do_stable_layer_norm": True})
        config = transformers_format.config_from_transformers(plain, Wav2Vec2ConformerConfig)
        positions = theirs.get("position_embeddings_type", "relative")
        if positions not in ("relative", "rotary"):
            raise ConfigError(f"`position_embeddings_type` of {folder.origin} is {positions!r}: not supported.")
        config = replace(
            config,
            positions=positions,
            rotary_base=int(theirs.get("rotary_embedding_base", 10_000)),
            block_kernel=int(theirs.get("conv_depthwise_kernel_size", 31)),
            conv_dropout=float(theirs.get("conformer_conv_dropout", 0.1)),
        )
        prefix = f"{folder.model_type.replace('-', '_')}."
        own = {k.removeprefix(prefix): v for k, v in folder.state.items() if not k.startswith(self.heads)}
        used = {k: v for k, v in own.items() if not k.startswith(UNUSED)}
        blocks = conformer_names.from_transformers(used)
        rest = {k: v for k, v in blocks.items() if not k.startswith("encoder.blocks.")}
        state = transformers_format.from_transformers(rest, prefix="", heads=self.heads)
        return ForeignModel(config, state | {k: v for k, v in blocks.items() if k not in rest}, self.optional)

    def write_transformers(self, config: ContextualConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """Writes transformers' format, with constants for the positional convolution that nothing computes with."""
        if not isinstance(config, Wav2Vec2ConformerConfig):
            raise ConfigError(f"The config must be a Wav2Vec2ConformerConfig, but is a {type(config).__name__}.")
        made = super().write_transformers(config, {k: v for k, v in state.items() if ".blocks." not in k})
        blocks = conformer_names.to_transformers(
            {k: v for k, v in state.items() if ".blocks." in k}, conv_norm="batch_norm"
        )
        description = {k: v for k, v in made.description.items() if k != "do_stable_layer_norm"} | {
            "hidden_act": "swish",
            "position_embeddings_type": config.positions,
            "rotary_embedding_base": int(config.rotary_base),  # transformers 5 takes no other
            "conv_depthwise_kernel_size": config.block_kernel,
            "conformer_conv_dropout": config.conv_dropout,
        }
        return replace(made, description=description, state=dict(made.state) | blocks | _unused(config))


def _unused(config: Wav2Vec2ConformerConfig) -> dict[str, Tensor]:
    """What transformers' model holds without computing with it, so that it misses nothing when it loads."""
    conv = "encoder.pos_conv_embed.conv"
    unused = {
        f"{conv}.bias": torch.zeros(config.width),
        f"{conv}.parametrizations.weight.original0": torch.ones(1, 1, config.pos_kernel),
        f"{conv}.parametrizations.weight.original1": torch.ones(
            config.width, config.width // config.pos_groups, config.pos_kernel
        ),
    }
    if config.positions == "rotary":
        size = config.width // config.heads
        steps = torch.arange(0, size, 2, dtype=torch.int64).float()
        unused["encoder.embed_positions.inv_freq"] = 1.0 / (config.rotary_base ** (steps / size))
    return unused


FORMATS = ConformerFormats(
    config=Wav2Vec2ConformerConfig,
    model_types=("wav2vec2-conformer",),
    architecture="Wav2Vec2ConformerModel",
    heads=(*HEADS, "adapter.", "wav2vec2_conformer.adapter."),
    fairseq_names=("wav2vec2",),
    fairseq_heads=("quantizer.", "project_q.", "final_proj.", "target_glu.", "proj.", "num_updates"),
)
