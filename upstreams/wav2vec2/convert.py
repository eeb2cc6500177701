"""The formats that wav2vec 2.0 comes in."""

from speechssl.contextual.formats import ContextualFormats
from upstreams.wav2vec2.config import Wav2Vec2Config

FORMATS = ContextualFormats(
    config=Wav2Vec2Config,
    model_types=("wav2vec2",),
    architecture="Wav2Vec2Model",
    heads=("quantizer.", "project_hid.", "project_q.", "lm_head.", "projector.", "classifier.", "layer_weights"),
    fairseq_names=("wav2vec2",),
    fairseq_heads=("quantizer.", "project_q.", "final_proj.", "target_glu.", "proj.", "num_updates"),
)
