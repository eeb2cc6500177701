"""What holds of every way to adapt every family of upstreams; a new family is tested here for nothing."""

import copy

import pytest
import torch
from test_upstreams import STRUCTURES, small

from speechssl.adapt.blocks import find_blocks
from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.methods import adapt, merge
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.registry import find_preset

FAMILIES = {find_preset(name)[0]: name for name in sorted(STRUCTURES.values())}
"""One structure for each family, and those whose blocks differ from it."""
NAMES = sorted({*FAMILIES.values(), "wav2vec2_conformer_rope_large", "tera_audio_albert", "hubert_base"})
ADDED = ("adapters", "lora", "prefix", "bitfit")
CONFIG = AdaptConfig(lora_rank=2, adapter_width=4, prefix_length=3)


@pytest.fixture(scope="module", params=NAMES)
def upstream(request):
    return small(request.param)


@pytest.fixture(scope="module")
def heard():
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(2, 8_000, generator=generator) + 0.02, torch.tensor([8_000, 5_037])


def adapted_copy(upstream, method, **changes):
    config = AdaptConfig(**{**vars(CONFIG), "method": method, **changes})
    return adapt(copy.deepcopy(upstream), config, seed=0)


@torch.no_grad()
def shake(adapted):
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.trained.values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def methods(upstream):
    return ADDED if find_blocks(upstream) else ()


@torch.no_grad()
def test_it_begins_as_the_frozen_upstream_exactly(upstream, heard):
    before = upstream(*heard).hidden_states
    for method in methods(upstream):
        after = adapted_copy(upstream, method).upstream(*heard).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), method


@torch.no_grad()
def test_an_utterance_does_not_depend_on_its_batch_once_it_has_learned(upstream, heard):
    waveform, lengths = heard
    for method in methods(upstream):
        adapted = adapted_copy(upstream, method)
        shake(adapted)
        batch = adapted.upstream(waveform, lengths).hidden_states
        for row, length in enumerate(lengths.tolist()):
            alone = adapted.upstream(waveform[row : row + 1, :length]).hidden_states
            for together, single in zip(batch, alone, strict=True):
                assert (together[row, : single.size(1)] - single[0]).abs().max() <= 1e-5, method


@torch.no_grad()
def test_what_it_says_is_frozen_is_and_what_lies_above_learns(upstream, heard):
    before = upstream(*heard).hidden_states
    top = len(upstream.hidden_sizes) - 1
    for method in (*methods(upstream), "full"):
        for layers in (None, 1):
            try:
                adapted = adapted_copy(upstream, method, top_layers=layers)
            except ConfigError as error:
                assert "nothing to train" in str(error) or "layers" in str(error)
                continue
            shake(adapted)
            after = adapted.upstream(*heard).hidden_states
            # Recurrent layers round otherwise once their weights need no gradients.
            same = [bool((a - b).abs().max() <= 1e-6) for a, b in zip(before, after, strict=True)]
            assert all(same[: adapted.frozen + 1]), method
            assert not any(same[adapted.frozen + 1 :]), method
            if layers == 1 and len(find_blocks(upstream)) == top:
                assert adapted.frozen == top - 1


def test_gradients_reach_what_is_trained_and_nothing_else(upstream, heard):
    for method in (*methods(upstream), "full"):
        try:
            adapted = adapted_copy(upstream, method)
        except ConfigError:
            assert not list(upstream.parameters())
            continue
        shake(adapted)
        adapted.upstream(*heard).hidden_states[-1].square().sum().backward()
        for name, parameter in adapted.upstream.named_parameters():
            assert (parameter.grad is not None) == (name in adapted.trained), f"{method}: {name}"


@torch.no_grad()
def test_merged_it_is_a_model_of_its_family_again(upstream, heard):
    for method in methods(upstream):
        adapted = adapted_copy(upstream, method, lora_targets=("query", "key", "value"))
        shake(adapted)
        if method in ("adapters", "prefix"):
            with pytest.raises(SpeechsslError, match="can't be merged"):
                merge(adapted.upstream)
            continue
        before = adapted.upstream(*heard).hidden_states
        merge(adapted.upstream)
        assert adapted.upstream.state_dict().keys() == upstream.state_dict().keys()
        after = adapted.upstream(*heard).hidden_states
        assert max((a - b).abs().max() for a, b in zip(before, after, strict=True)) <= 1e-5


def test_a_family_without_transformer_blocks_says_so(upstream):
    if find_blocks(upstream):
        return
    for method in ADDED:
        with pytest.raises(ConfigError, match="needs transformer blocks, which"):
            adapted_copy(upstream, method)
