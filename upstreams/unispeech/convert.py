"""The formats that UniSpeech comes in."""

from speechssl.contextual.formats import ContextualFormats
from upstreams.unispeech.config import UniSpeechConfig

FORMATS = ContextualFormats(
    config=UniSpeechConfig,
    model_types=("unispeech",),
    architecture="UniSpeechModel",
    heads=(),
    fairseq_names=("unispeech",),
    fairseq_heads=("quantizer.", "project_q.", "final_proj.", "target_glu.", "num_updates"),
)
