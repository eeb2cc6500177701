"""The formats that HuBERT comes in, those of ContentVec (with conditional blocks on top) and those of MERT (music)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names
from speechssl.contextual.formats import ContextualFormats
from speechssl.errors import ConfigError
from speechssl.fairseq_format import FairseqCheckpoint
from speechssl.formats import ForeignModel, TransformersFolder
from upstreams.hubert.config import HubertConfig

MERT_PARTS = ("feature_extractor_cqt", "deepnorm", "subln", "do_cnn_feat_stable_layernorm", "wav_normalize")
"""Of MERT's code, which the published models are without; `attention_relax`, which 330M has, changes no result: it
shifts what enters a softmax."""
MERT_HEADS = ("encoder_cqt_model.", "encoder_mel_model.", "final_projs.", "logit_temp_list")


@dataclass(frozen=True, kw_only=True)
class HubertFormats(ContextualFormats):
    """What differs from the other models of the architecture: blocks that belong to a head, and what MERT says."""

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """See `speechssl.contextual.transformers_format`; the code that MERT's folders hold is not run.

        Paper: Li et al. 2024 (MERT), arXiv:2306.00107.
        """
        if folder.model_type != "hubert":
            _check_mert(folder.description, folder.origin)
            said = {"do_normalize": True, "sampling_rate": folder.description.get("sample_rate", 16_000)}
            folder = replace(folder, preprocessor={**said, **folder.preprocessor})
        return super().read_transformers(folder)

    def weights_from_fairseq(self, checkpoint: FairseqCheckpoint) -> dict[str, Tensor]:
        """Leaves out ContentVec's last blocks, which are told the speaker and serve pre-training alone.

        Paper: Qian et al. 2022, sec. 3.4, arXiv:2204.09224.
        """
        heads = self.fairseq_heads
        if checkpoint.architecture == "mert":
            _check_mert(checkpoint.model, "the checkpoint")
            heads = (*heads, *MERT_HEADS)
        if checkpoint.architecture == "contentvec":
            first = int(checkpoint.model.get("encoder_layers", 12))
            count = int(checkpoint.model.get("encoder_layers_1", 3))
            blocks = tuple(f"encoder.layers.{block}." for block in range(first, first + count))
            heads = (*heads, *blocks, "encoder.cond_layer_norm.", "layer_proj.")
        return fairseq_names.rename_weights(checkpoint.state, heads=heads)


def _check_mert(settings: Mapping[str, Any], origin: str) -> None:
    for key in MERT_PARTS:
        if settings.get(key, False):
            raise ConfigError(f"`{key}` of {origin} must be False, but is {settings[key]!r}: not supported.")


FORMATS = HubertFormats(
    config=HubertConfig,
    model_types=("hubert", "mert_model", "music_hubert"),
    architecture="HubertModel",
    heads=("lm_head.", "projector.", "classifier.", "layer_weights", "final_proj."),
    fairseq_names=("hubert", "contentvec", "ils_hubert", "mert"),
    fairseq_heads=("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates", "weights"),
)
