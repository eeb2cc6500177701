"""The formats that HuBERT comes in."""

from speechssl.contextual.formats import ContextualFormats
from upstreams.hubert.config import HubertConfig

FORMATS = ContextualFormats(
    config=HubertConfig,
    model_types=("hubert",),
    architecture="HubertModel",
    heads=("lm_head.", "projector.", "classifier.", "layer_weights"),
    fairseq_names=("hubert",),
    fairseq_heads=("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates"),
)
