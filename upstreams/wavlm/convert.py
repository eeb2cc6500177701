"""The formats that WavLM comes in."""

from speechssl.contextual.formats import ContextualFormats
from upstreams.wavlm.config import WavLMConfig

FORMATS = ContextualFormats(
    config=WavLMConfig,
    model_types=("wavlm",),
    architecture="WavLMModel",
    heads=(),
    fairseq_names=("wavlm",),
    fairseq_heads=("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates"),
)
