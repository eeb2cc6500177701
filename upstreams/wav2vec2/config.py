"""Shapes of the wav2vec 2.0 models.

Papers: Baevski et al. 2020, arXiv:2006.11477; Hsu et al. 2021 (robust), arXiv:2104.01027; Conneau et al. 2020 (XLSR),
arXiv:2006.13979; Wang et al. 2021 (VoxPopuli), arXiv:2101.00390; Babu et al. 2021 (XLS-R), arXiv:2111.09296; Pratap et
al. 2023 (MMS), arXiv:2305.13516.
"""

from dataclasses import dataclass, replace

from speechssl.contextual.config import ContextualConfig, large, tiny


@dataclass(frozen=True)
class Wav2Vec2Config(ContextualConfig):
    """A wav2vec 2.0 model; the defaults are the published base model."""


_LARGE = Wav2Vec2Config(width=1024, depth=24, heads=16, ffn_width=4096, layerdrop=0.2)
_LV60 = large(Wav2Vec2Config(conv_bias=True))
_1B = replace(_LV60, width=1280, depth=48, ffn_width=5120, input_dropout=0.1)
_1B_ADAPTED = replace(_1B, adapter_width=16)

PRESETS: dict[str, Wav2Vec2Config] = {
    "wav2vec2_tiny": tiny(Wav2Vec2Config()),
    "wav2vec2_base": Wav2Vec2Config(),
    "wav2vec2_ccc_base": Wav2Vec2Config(),
    "wav2vec2_aug_base": Wav2Vec2Config(),
    "wav2vec2_large": _LARGE,
    "wav2vec2_large_lv60": _LV60,
    "wav2vec2_large_robust": _LV60,
    "wav2vec2_xlsr_53": _LV60,
    "wav2vec2_xls_r_300m": _LV60,
    "wav2vec2_xls_r_1b": _1B,
    "wav2vec2_xls_r_2b": replace(_1B, width=1920, ffn_width=7680),
    "wav2vec2_mms_300m": _LV60,
    "wav2vec2_mms_1b": _1B,
    "wav2vec2_mms_1b_all": _1B_ADAPTED,
    "wav2vec2_mms_1b_fl102": _1B_ADAPTED,
    "wav2vec2_mms_1b_l1107": _1B_ADAPTED,
    "wav2vec2_voxpopuli_base_10k": Wav2Vec2Config(),
    "wav2vec2_voxpopuli_base_100k": Wav2Vec2Config(),
    "wav2vec2_voxpopuli_large_10k": _LV60,
    "wav2vec2_voxpopuli_large_100k": _LV60,
}
"""tiny is our own; ccc and aug are shaped as base, and trained otherwise (see pretrain.py)."""

REPOSITORIES: dict[str, str] = {
    "wav2vec2_base": "facebook/wav2vec2-base",
    "wav2vec2_large": "facebook/wav2vec2-large",
    "wav2vec2_large_lv60": "facebook/wav2vec2-large-lv60",
    "wav2vec2_large_robust": "facebook/wav2vec2-large-robust",
    "wav2vec2_xlsr_53": "facebook/wav2vec2-large-xlsr-53",
    "wav2vec2_xls_r_300m": "facebook/wav2vec2-xls-r-300m",
    "wav2vec2_xls_r_1b": "facebook/wav2vec2-xls-r-1b",
    "wav2vec2_xls_r_2b": "facebook/wav2vec2-xls-r-2b",
    "wav2vec2_mms_300m": "facebook/mms-300m",
    "wav2vec2_mms_1b": "facebook/mms-1b",
    "wav2vec2_mms_1b_all": "facebook/mms-1b-all",
    "wav2vec2_mms_1b_fl102": "facebook/mms-1b-fl102",
    "wav2vec2_mms_1b_l1107": "facebook/mms-1b-l1107",
    "wav2vec2_voxpopuli_base_10k": "facebook/wav2vec2-base-10k-voxpopuli",
    "wav2vec2_voxpopuli_base_100k": "facebook/wav2vec2-base-100k-voxpopuli",
    "wav2vec2_voxpopuli_large_10k": "facebook/wav2vec2-large-10k-voxpopuli",
    "wav2vec2_voxpopuli_large_100k": "facebook/wav2vec2-large-100k-voxpopuli",
}
"""Where the published weights are, in transformers' format."""
