"""The format that Fast-HuBERT comes in: fairseq's, with the names of its code."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.fairseq_names import config_from_fairseq, rename_weights, their_name
from speechssl.contextual.formats import OPTIONAL
from speechssl.errors import SpeechsslError
from speechssl.fairseq_format import FairseqCheckpoint, has_settings, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, Formats
from upstreams.fast_hubert.config import FastHubertConfig

logger = logging.getLogger(__name__)
HEADS = ("label_embs_concat", "final_proj.", "target_glu.", "feature_extractor.", "num_updates")
"""`feature_extractor` is that of HuBERT's model, which theirs inherits and does not use."""
STATISTICS = frozenset(f"frontend.norm.{name}" for name in ("mean", "deviation", "frames"))


@dataclass(frozen=True)
class FastHubertFormats(Formats):
    """fairseq's checkpoints; the statistics of the corpus lie in a file of their own, so they are not read."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint whose architecture is 'fasthubert'."""
        if not is_fairseq(content) or not has_settings(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if checkpoint.architecture != "fasthubert":
            return None
        logger.warning(
            "%s holds no mean and deviation of its corpus (they are in its stats_npz_path): fill "
            "`upstream.frontend.norm.mean` and `.deviation` with them.",
            origin,
        )
        state = {_our_name(k): v for k, v in rename_weights(checkpoint.state, heads=HEADS).items()}
        return ForeignModel(_config(checkpoint, origin), state, OPTIONAL | STATISTICS, _their_name)


def _config(checkpoint: FairseqCheckpoint, origin: str) -> FastHubertConfig:
    """The settings of the code's `FastHubertConfig`; `sample_rate` of its task is that of the frames."""
    model = checkpoint.model
    common = config_from_fairseq(checkpoint, ContextualConfig, origin=origin)
    shared: Mapping[str, Any] = {f.name: getattr(common, f.name) for f in fields(common)}
    kernels = str(model.get("conv_kernel_sizes", "5,5"))
    if not re.fullmatch(r"\d+(,\d+)*", kernels):
        raise SpeechsslError(f"`conv_kernel_sizes` of {origin} must look like '5,5', but is '{kernels}'.")
    changes = {
        "sample_rate": FastHubertConfig.sample_rate,
        "normalize": False,
        "feature_grad_mult": 1.0,
        "num_mel_bins": int(model.get("input_feat_per_channel", 80)) * int(model.get("input_channels", 1)),
        "conv_channels": int(model.get("fbank_encoder_dim", 512)),
    }
    return FastHubertConfig(
        **{**shared, **changes},
        subsample_channels=int(model.get("conv_channels", 1024)),
        subsample_kernels=tuple(map(int, kernels.split(","))),
    )


def _our_name(key: str) -> str:
    return re.sub(r"^subsample\.conv_layers\.", "frontend.convs.", key)


def _their_name(key: str) -> str:
    if key.startswith("frontend.convs."):
        return key.replace("frontend.convs.", "subsample.conv_layers.", 1)
    return their_name(key)


FORMATS = FastHubertFormats()
