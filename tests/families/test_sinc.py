"""The sinc upstream: what AASIST hears of a waveform, and that with its head it is AASIST."""

import numpy as np
import pytest
import torch
from deepfake_reference import pool_frames, sinc_filters

from downstreams.deepfake_detection.backends.aasist import Aasist, RawAasist
from downstreams.deepfake_detection.backends.config import AasistConfig
from speechssl.loading import load_upstream
from upstreams.sinc import model
from upstreams.sinc.config import SincConfig


def test_frames_are_the_largest_of_three_filters_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CHUNK", 50)
    waveform = torch.randn(1, 700, generator=torch.Generator().manual_seed(0))
    out = model.build(SincConfig(conv_channels=8))(waveform)
    padded = np.pad(waveform[0].double().numpy(), 64)
    response = np.abs(np.stack([np.correlate(padded, f, mode="valid") for f in sinc_filters(8)]))
    expected = pool_frames(pool_frames(response, 3, 0), 3, 1).T
    assert out.lengths.tolist() == [233]
    np.testing.assert_allclose(out.hidden_states[0][0], expected, atol=1e-5, rtol=0)


def test_the_upstream_and_the_head_are_aasist_on_the_waveform() -> None:
    upstream = load_upstream("sinc")
    assert upstream.hidden_sizes == (23,)
    config = AasistConfig(front="sinc", channels=(3, 5), widths=(4, 6))
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        raw = RawAasist(config).eval()
    head = Aasist(23, config=config).eval()
    head.load_state_dict(raw.detector.state_dict())
    generator = torch.Generator().manual_seed(1)
    speech = torch.randn(1, 4_600, generator=generator)
    with torch.no_grad():
        out = upstream(speech)
        # The published network hears no frames at both ends: silence there makes both the same.
        expected = raw(torch.nn.functional.pad(speech, (64, 64)), torch.tensor([4_600 + 128]))
        torch.testing.assert_close(head(out.hidden_states[0], out.lengths), expected, atol=1e-5, rtol=0)
