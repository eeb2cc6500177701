"""Weights of torchaudio, which come without settings: recognised, and with torchaudio's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from speechssl.upstream import Upstream

CONVS = [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2


def torchaudios(kind: str, *, layer_norm: bool, width: int = 768, aux: int | None = None) -> torch.nn.Module:
    """A model of torchaudio with a published width, which its weights need to tell the heads."""
    sizes: dict[str, Any] = {
        "extractor_mode": "layer_norm" if layer_norm else "group_norm", "extractor_conv_layer_config": CONVS,
        "extractor_conv_bias": layer_norm, "encoder_embed_dim": width, "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 8, "encoder_num_layers": 2,
        "encoder_num_heads": 16 if width > 768 else 12, "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 40, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
        "encoder_layer_norm_first": layer_norm, "encoder_layer_drop": 0.0, "aux_num_out": aux,
    }  # fmt: skip
    if kind == "wavlm":
        sizes |= {"encoder_num_buckets": 320, "encoder_max_distance": 800}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = getattr(torchaudio.models, f"{kind}_model")(**sizes).eval()
        for parameter in model.parameters():
            parameter.data.add_((0.2 if parameter.dim() in {1, 4} else 0.03) * torch.randn(parameter.shape))
    return model  # type: ignore[no-any-return]  # untyped in torchaudio


def plain(model: torch.nn.Module) -> dict[str, Any]:
    return model.state_dict()


def of_a_bundle(model: torch.nn.Module) -> dict[str, Any]:
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def of_training(model: torch.nn.Module) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": of_a_bundle(model)}


def old_weight_norm(model: torch.nn.Module) -> dict[str, Any]:
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = model.state_dict()
    for new, old in names.items():
        state[f"encoder.transformer.pos_conv_embed.conv.{old}"] = state.pop(
            f"encoder.transformer.pos_conv_embed.conv.{new}"
        )
    return state


@torch.no_grad()
def check_torchaudio(upstream: Upstream, model: Any, *, layer_norm: bool) -> None:
    waveform = torch.randn(1, 30_000, generator=torch.Generator().manual_seed(0))
    values = torch.nn.functional.layer_norm(waveform, waveform.shape) if layer_norm else waveform
    states = model.extract_features(values)[0]
    if layer_norm:  # torchaudio leaves the closing norm to `forward`
        states[-1] = model.encoder.transformer.layer_norm(states[-1])
    found = upstream(waveform).hidden_states
    for layer, state in enumerate(states, start=1):
        torch.testing.assert_close(found[layer], state, rtol=0, atol=1e-4)
    assert len(found) == len(states) + 1


@pytest.mark.parity("torchaudio ({form})", "torchaudio", family="{kind}")
@pytest.mark.parametrize("form", [plain, of_a_bundle, of_training, old_weight_norm])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_weights_of_torchaudio_give_its_numbers(
    kind: str, layer_norm: bool, form: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    model = torchaudios(kind, layer_norm=layer_norm, aux=29 if form is of_a_bundle else None)
    torch.save(form(model), tmp_path / "model.pth")
    upstream = load_upstream(tmp_path / "model.pth")
    assert (upstream.family, upstream.normalize) == (kind, layer_norm)
    check_torchaudio(upstream, model, layer_norm=layer_norm)


@pytest.mark.parity("torchaudio, pre-training", "torchaudio", family="hubert")
def test_models_that_torchaudio_pre_trains_are_read_as_hubert(tmp_path: Path) -> None:
    model = torchaudios("wav2vec2", layer_norm=False)
    state = {f"wav2vec2.{name}": value for name, value in model.state_dict().items()}
    state["mask_generator.mask_embedding"] = torch.full((768,), 0.25)
    state["logit_generator.label_embeddings"] = torch.zeros(10, 8)
    save_file(state, tmp_path / "model.safetensors")
    upstream = load_upstream(tmp_path / "model.safetensors")
    assert upstream.family == "hubert"
    assert (upstream.mask_embedding == 0.25).all()
    check_torchaudio(upstream, model, layer_norm=False)


def test_weights_of_torchaudio_with_16_heads_are_read(tmp_path: Path) -> None:
    model = torchaudios("wav2vec2", layer_norm=True, width=1280)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    upstream = load_upstream(tmp_path / "model.pth")
    assert upstream.config.heads == 16
    check_torchaudio(upstream, model, layer_norm=True)


def _narrow(state: dict[str, Tensor]) -> None:
    state["encoder.feature_projection.projection.weight"] = torch.zeros(512, 16)


def _other_kernels(state: dict[str, Tensor]) -> None:
    state["feature_extractor.conv_layers.0.conv.weight"] = torch.zeros(16, 1, 8)


def _without_projection(state: dict[str, Tensor]) -> None:
    del state["encoder.feature_projection.projection.weight"]


def _without_a_norm(state: dict[str, Tensor]) -> None:
    del state["encoder.transformer.layers.1.final_layer_norm.bias"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_narrow, r"width 512, which don't tell the number of heads"),
        (_other_kernels, r"kernels \(8, 3, 3, 3, 3, 2, 2\)"),
        (_without_projection, r"lacks 'encoder\.feature_projection\.projection\.weight'"),
        (_without_a_norm, r"lack 'encoder\.transformer\.layers\.1\.final_layer_norm\.bias'"),
    ],
)
def test_weights_of_torchaudio_that_tell_too_little_are_refused(
    damage: Callable[[dict[str, Tensor]], None], says: str, tmp_path: Path
) -> None:
    state = torchaudios("wav2vec2", layer_norm=False).state_dict()
    damage(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(SpeechsslError, match=says):
        load_upstream(tmp_path / "model.pth")
