"""The formats that HuBERT comes in, and those of ContentVec, which are HuBERT with conditional blocks on top."""

from dataclasses import dataclass

from torch import Tensor

from speechssl.contextual import fairseq_names
from speechssl.contextual.formats import ContextualFormats
from speechssl.fairseq_format import FairseqCheckpoint
from upstreams.hubert.config import HubertConfig


@dataclass(frozen=True, kw_only=True)
class HubertFormats(ContextualFormats):
    """What differs from the other models of the architecture: blocks that belong to a head."""

    def weights_from_fairseq(self, checkpoint: FairseqCheckpoint) -> dict[str, Tensor]:
        """Leaves out ContentVec's last blocks, which are told the speaker and serve pre-training alone.

        Paper: Qian et al. 2022, sec. 3.4, arXiv:2204.09224.
        """
        heads = self.fairseq_heads
        if checkpoint.architecture == "contentvec":
            first = int(checkpoint.model.get("encoder_layers", 12))
            count = int(checkpoint.model.get("encoder_layers_1", 3))
            blocks = tuple(f"encoder.layers.{block}." for block in range(first, first + count))
            heads = (*heads, *blocks, "encoder.cond_layer_norm.", "layer_proj.")
        return fairseq_names.rename_weights(checkpoint.state, heads=heads)


FORMATS = HubertFormats(
    config=HubertConfig,
    model_types=("hubert",),
    architecture="HubertModel",
    heads=("lm_head.", "projector.", "classifier.", "layer_weights", "final_proj."),
    fairseq_names=("hubert", "contentvec", "ils_hubert"),
    fairseq_heads=("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates", "weights"),
)
