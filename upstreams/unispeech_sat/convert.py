"""The formats that UniSpeech-SAT comes in."""

from speechssl.contextual.formats import ContextualFormats
from upstreams.unispeech_sat.config import UniSpeechSatConfig

FORMATS = ContextualFormats(
    config=UniSpeechSatConfig,
    model_types=("unispeech-sat",),
    architecture="UniSpeechSatModel",
    heads=(),
    fairseq_names=("unispeech_sat",),
    fairseq_heads=(
        "label_embs_concat",
        "final_proj.",
        "target_glu.",
        "quantizer.",
        "project_q.",
        "spk_proj.",
        "num_updates",
    ),
)
