"""What the tests of models of the wav2vec 2.0 architecture share: small models of transformers, and comparisons."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from speechssl.upstream import Upstream

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [32] * 7,
    "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TOLERANCE = 1e-4


def their_model(kind: type[PreTrainedModel], config: type[Any], **changes: object) -> PreTrainedModel:
    """A small model of transformers in which each part matters, unlike in one that has just been made."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(**SMALL | changes)).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("gru_rel_pos_const"):
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
            elif name.endswith(("rel_attn_embed.weight", "gru_rel_pos_linear.weight")):
                torch.nn.init.normal_(parameter, std=1.0)
            elif parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.size(1) ** -0.5)
    return model


def noise(samples: int = 9_000, batch: int = 1) -> Tensor:
    """Loud, since transformers divides by sqrt(variance + 1e-7), and we, as fairseq does, by sqrt(variance + 1e-5)."""
    return 0.5 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0)) + 0.01


def their_states(model: PreTrainedModel, *inputs: Tensor) -> list[Tensor]:
    """The hidden states as transformers 4 numbers them: from 5 on, the last of them lacks the closing norm."""
    out = model(*inputs, output_hidden_states=True)
    last = out.last_hidden_state
    if last.shape != out.hidden_states[-1].shape:  # what comes after the last block makes fewer frames
        closing = model.config.do_stable_layer_norm and int(transformers.__version__.split(".")[0]) >= 5
        last = model.encoder.layer_norm(out.hidden_states[-1]) if closing else out.hidden_states[-1]
    return [*out.hidden_states[:-1], last]


@torch.no_grad()
def check_parity(model: PreTrainedModel, upstream: Upstream, waveform: Tensor | None = None) -> None:
    """Each hidden state of one utterance equals that of transformers."""
    waveform = noise() if waveform is None else waveform
    extractor = Wav2Vec2FeatureExtractor(do_normalize=upstream.normalize, return_attention_mask=False)
    values = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    theirs = their_states(model, values)
    ours = upstream(waveform).hidden_states
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def check_padded_parity(model: PreTrainedModel, upstream: Upstream) -> None:
    """Each hidden state of a padded batch equals that of transformers, which gets this right without group norm."""
    waveform, lengths = noise(9_000, batch=3), torch.tensor([9_000, 4_000, 6_777])
    extractor = Wav2Vec2FeatureExtractor(do_normalize=upstream.normalize, return_attention_mask=True)
    rows = [row[:n].numpy() for row, n in zip(waveform, lengths.tolist(), strict=True)]
    inputs = extractor(rows, sampling_rate=16_000, padding=True, return_tensors="pt")
    theirs = their_states(model, inputs.input_values, inputs.attention_mask)
    out = upstream(waveform, lengths)
    for a, b in zip(out.hidden_states, theirs, strict=True):
        for row, frames in enumerate(out.lengths.tolist()):
            torch.testing.assert_close(a[row, :frames], b[row, :frames], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def check_parity_row_by_row(model: PreTrainedModel, upstream: Upstream) -> None:
    """Each hidden state of a padded batch equals that of transformers for each utterance alone."""
    waveform, lengths = noise(14_000, batch=2), torch.tensor([14_000, 6_000])
    rate = upstream.sample_rate
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=upstream.normalize)
    out = upstream(waveform, lengths)
    for row, length in enumerate(lengths.tolist()):
        values = extractor(waveform[row, :length].numpy(), sampling_rate=rate, return_tensors="pt").input_values
        theirs = their_states(model, values)
        assert len(out.hidden_states) == len(theirs)
        for a, b in zip(out.hidden_states, theirs, strict=True):
            assert int(out.lengths[row]) == b.size(1)
            torch.testing.assert_close(a[row, : b.size(1)], b[0], rtol=0, atol=TOLERANCE)


def check_round_trip(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """transformers -> our folder -> transformers gives each weight back; returns what transformers loads."""
    model.save_pretrained(folder / "theirs")
    export_upstream(folder / "theirs", folder / "ours", to="speechssl")
    export_upstream(folder / "ours", folder / "back", to="transformers")
    again = type(model).from_pretrained(folder / "back").eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    check_parity(again, load_upstream(folder / "ours"))
    return again
