"""wav2vec 2.0 against transformers and torchaudio; what it shares with HuBERT is tested there."""

from pathlib import Path

import pytest
import torch
import torchaudio
from transformers import Wav2Vec2Config as TheirConfig
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining, Wav2Vec2Model

from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from upstreams.wav2vec2.config import PRESETS
from upstreams.wav2vec2.model import build

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [32] * 7,
    "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_hidden_states_equal_transformers_and_go_back_bit_for_bit(changes: dict[str, object], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wav2Vec2ForPreTraining(TheirConfig(**SMALL, **changes)).eval()
    model.save_pretrained(tmp_path / "theirs")  # with the quantizer, which is no part of the upstream
    upstream = load_upstream(tmp_path / "theirs")
    assert (upstream.family, upstream.normalize) == ("wav2vec2", bool(changes))
    # Loud, since transformers divides by sqrt(variance + 1e-7), and we, as fairseq does, by sqrt(variance + 1e-5).
    waveform = 0.5 * torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0)) + 0.01
    extractor = Wav2Vec2FeatureExtractor(do_normalize=upstream.normalize, return_attention_mask=False)
    values = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        theirs = model.wav2vec2(values, output_hidden_states=True).hidden_states
        ours = upstream(waveform).hidden_states
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again = Wav2Vec2Model.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.wav2vec2.state_dict().items())


@pytest.mark.parametrize(
    ("name", "builder", "count"),
    [
        ("wav2vec2_base", torchaudio.models.wav2vec2_base, 94_370_944),
        ("wav2vec2_large", torchaudio.models.wav2vec2_large, 315_427_968),
        ("wav2vec2_large_lv60", torchaudio.models.wav2vec2_large_lv60k, 315_437_696),
        ("wav2vec2_xls_r_300m", torchaudio.models.wav2vec2_xlsr_300m, 315_437_696),
        ("wav2vec2_xls_r_1b", torchaudio.models.wav2vec2_xlsr_1b, 962_496_128),
        ("wav2vec2_voxpopuli_base_100k", torchaudio.models.wav2vec2_base, 94_370_944),
        ("wav2vec2_voxpopuli_large_100k", torchaudio.models.wav2vec2_large_lv60k, 315_437_696),
        ("wav2vec2_xls_r_2b", torchaudio.models.wav2vec2_xlsr_2b, 2_159_257_728),
    ],
)
def test_presets_have_the_published_shapes(name: str, builder: object, count: int) -> None:
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), builder()  # type: ignore[operator]  # a builder of torchaudio
    parameters = sum(p.numel() for p in ours.parameters()) - ours.mask_embedding.numel()
    assert parameters == sum(p.numel() for p in theirs.parameters()) == count
