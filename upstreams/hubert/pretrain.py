"""HuBERT's pre-training: masked prediction of clusters, of MFCC at first and then of hidden states.

With `objective.layers=(4, 12)` it is ILS-SSL: intermediate layers are supervised too.
"""

from dataclasses import dataclass, replace

from speechssl.masked_objective import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective import Labelling
from speechssl.train.config import PretrainConfig
from upstreams.hubert.model import HubertUpstream


@dataclass(frozen=True)
class HubertPretrainConfig(MaskedPredictionConfig):
    """The objective; the defaults are those of the published base model.

    Paper: Hsu et al. 2021, sec. 2 and 4, arXiv:2106.07447, and fairseq's hubert_base_librispeech.yaml.
    """


PRETRAIN_PRESETS: dict[str, HubertPretrainConfig] = {
    "hubert_tiny": HubertPretrainConfig(label_init="unit"),
    "hubert_base_iter1": HubertPretrainConfig(),
    "hubert_base": HubertPretrainConfig(),
    "hubert_base_ils": HubertPretrainConfig(layers=(4, 12)),
    "hubert_large": HubertPretrainConfig(final_dim=768),
    "hubert_xlarge": HubertPretrainConfig(final_dim=1024),
}

BASE = PretrainConfig(steps=400_000)
LARGE = replace(BASE, batch_seconds=56.25, batches_per_step=128, learning_rate=1.5e-3, clip_norm=1.0)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "hubert_base_iter1": replace(BASE, steps=250_000),
    "hubert_base": BASE,
    "hubert_base_ils": BASE,
    "hubert_large": LARGE,
    "hubert_xlarge": replace(LARGE, batch_seconds=22.5, batches_per_step=256, learning_rate=3e-3),
}
"""iter1 predicts 100 clusters of MFCC, base 500 clusters of layer 6 of that, large and xlarge 500 of layer 9 of base; a
micro-batch is what one of the paper's GPUs heard."""


class HubertPretraining(MaskedPredictionObjective):
    """A HuBERT upstream with its prediction heads."""


def build_pretraining(
    upstream: HubertUpstream, config: HubertPretrainConfig, labelling: Labelling
) -> HubertPretraining:
    """Makes the objective around an upstream."""
    return HubertPretraining(upstream, config, labelling)
