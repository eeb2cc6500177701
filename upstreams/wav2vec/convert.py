"""The formats that wav2vec comes in."""

from speechssl.conv_context.formats import ConvContextFormats
from upstreams.wav2vec.config import Wav2VecConfig

FORMATS = ConvContextFormats(config=Wav2VecConfig, quantizers=("none",))
