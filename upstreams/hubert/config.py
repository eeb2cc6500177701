"""Shapes of the HuBERT models.

Papers: Hsu et al. 2021, table 1, arXiv:2106.07447; Qian et al. 2022 (ContentVec), arXiv:2204.09224; Boito et al. 2024
(mHuBERT-147), arXiv:2406.06371.
"""

from dataclasses import dataclass, replace

from speechssl.contextual.config import ContextualConfig, large, tiny


@dataclass(frozen=True)
class HubertConfig(ContextualConfig):
    """A HuBERT model; the defaults are the published base model."""


PRESETS: dict[str, HubertConfig] = {
    "hubert_tiny": tiny(HubertConfig()),
    "hubert_base_iter1": HubertConfig(),
    "hubert_base": HubertConfig(),
    "hubert_base_ils": HubertConfig(),
    "hubert_large": large(HubertConfig()),
    "hubert_xlarge": replace(large(HubertConfig()), width=1280, depth=48, ffn_width=5120),
    "hubert_contentvec": HubertConfig(),
    "hubert_mhubert_147": HubertConfig(normalize=True),
    "hubert_mert_95m": HubertConfig(sample_rate=24_000, normalize=True, activation_dropout=0.1, layerdrop=0.1),
    "hubert_mert_330m": replace(large(HubertConfig(sample_rate=24_000)), conv_norm="group"),
}
"""tiny is our own; base, large and xlarge are published, and the music models of Li et al. 2024, arXiv:2306.00107.
base_iter1 and base_ils have the shape of base, to be pre-trained: the first iteration, and with intermediate layers
supervised (Wang et al. 2022, arXiv:2112.08778)."""

REPOSITORIES: dict[str, str] = {
    "hubert_base": "facebook/hubert-base-ls960",
    "hubert_large": "facebook/hubert-large-ll60k",
    "hubert_xlarge": "facebook/hubert-xlarge-ll60k",
    "hubert_contentvec": "lengyue233/content-vec-best",
    "hubert_mhubert_147": "utter-project/mHuBERT-147",
    "hubert_mert_95m": "m-a-p/MERT-v1-95M",
    "hubert_mert_330m": "m-a-p/MERT-v1-330M",
}
"""Where the published weights are, in transformers' format."""
