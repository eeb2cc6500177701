"""Audio encoders of transformers behind our interface.

B batch, S samples, T frames, N tokens, D width, L blocks.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.errors import SpeechsslError
from speechssl.loading import build_upstream
from speechssl.upstream import Upstream
from upstreams.transformers import theirs as library
from upstreams.transformers.config import TransformersConfig
from upstreams.transformers.inputs import find_layout, prepare

GROUP = 8
"""Utterances (or windows) of equal length that are computed at once."""

DEPTHS = ("encoder_layers", "encoder_num_hidden_layers", "num_hidden_layers")
"""What configs call the number of an encoder's blocks."""


class _StopError(Exception):
    """Ends a forward pass once what was wanted is there."""


class TransformersUpstream(Upstream):
    """An encoder of transformers: hidden states numbered and computed by it, from its own feature extractor on.

    Each utterance is prepared alone, and computed with those of its length at most: never with padding or an attention
    mask that was made for a batch. How exact a model's own masking is does not matter then (group norms, convolutions
    and pooled frames let padding through in most), and an utterance does not depend on its batch. Models of fixed
    windows get one after the other, each padded as their extractor does, and the frames of the padding are cut off.
    """

    name = "transformers"
    family = "transformers"

    def __init__(self, config: TransformersConfig, encoder: nn.Module | None = None) -> None:
        """
        Args:
            config: of the model.
            encoder: with weights; None = made with random ones.

        Raises:
            SpeechsslError: its input or its frames are of a kind that is not supported.
        """
        settings = library.make_config(config)
        encoder = library.make_encoder(settings) if encoder is None else encoder
        encoder.eval()
        extractor = library.make_extractor(config, settings)
        arguments = frozenset(inspect.signature(encoder.forward).parameters)
        blocks = find_blocks(encoder)
        try:
            layout = find_layout(extractor, settings, partial(_count_frames, encoder, blocks, extractor, arguments))
            width = _first_state(encoder, blocks, prepare(extractor, torch.zeros(layout.least), arguments)).size(2)
        except SpeechsslError:
            raise
        except Exception as error:  # whatever its layers say to input that is not theirs
            first = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
            raise SpeechsslError(
                f"A model of type '{settings.model_type}' can't take its input from {type(extractor).__name__} "
                f"({first}): is preprocessor_config.json there, and the model's?"
            ) from error
        super().__init__(
            sample_rate=extractor.sampling_rate,
            frame_rate=extractor.sampling_rate / layout.hop,
            hidden_sizes=(width,) * (len(blocks) + 1),
        )
        self.config = config
        self.encoder = encoder
        self.extractor = extractor
        self.layout = layout
        self.arguments = arguments

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.layout.output_lengths(lengths)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        pieces = self._pieces(waveform, lengths)
        states: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
        for group in _groups(pieces):
            inputs = {key: torch.cat([pieces[i][1][key] for i in group]) for key in pieces[group[0]][1]}
            found = _run(self.encoder, find_blocks(self.encoder), self._placed(inputs), layers)
            for layer, tokens in found.items():
                frames = self.layout.frames(tokens)
                states[layer].update({i: frames[place] for place, i in enumerate(group)})
        rows = [[i for i, (row, _) in enumerate(pieces) if row == wanted] for wanted in range(len(lengths))]
        joined = {k: [torch.cat([parts[i] for i in row]) for row in rows] for k, parts in states.items()}
        return {k: nn.utils.rnn.pad_sequence(utterances, batch_first=True) for k, utterances in joined.items()}

    def _pieces(self, waveform: Tensor, lengths: Tensor) -> list[tuple[int, dict[str, Tensor]]]:
        """(row, what the model is given) of each utterance or window, in order."""
        audio = waveform.detach().float().cpu()
        return [
            (row, prepare(self.extractor, audio[row, begin:end], self.arguments))
            for row, length in enumerate(lengths.tolist())
            for begin, end in self.layout.split(length)
        ]

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device and, if they are numbers, in the type of the weights."""
        like = next(self.encoder.parameters())
        return {k: v.to(like.device, like.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}

    def fingerprint_config(self) -> str:
        """Both configuration files."""
        return repr(self.config)


def build(config: TransformersConfig) -> TransformersUpstream:
    """Makes the model with random weights."""
    return TransformersUpstream(config)


def wrap(reference: str, *, random_weights: int | None = None) -> Upstream:
    """Loads a model of transformers from a folder or repository.

    Args:
        reference: a folder, or 'org/name[@revision]' of the Hugging Face hub.
        random_weights: seed; None = its own weights.

    Raises:
        SpeechsslError: no such model, or one that is not supported.
    """
    folder = library.find_folder(reference)
    config = library.read_config(folder)
    if random_weights is not None:
        return build_upstream("transformers", config, seed=random_weights)
    with torch.random.fork_rng(devices=[]):  # what a checkpoint lacks, such as the embedding of masks, is drawn
        encoder = library.load_encoder(folder, library.make_config(config))
    upstream = TransformersUpstream(config, encoder)
    upstream.weights = reference
    return upstream


def find_blocks(encoder: nn.Module) -> nn.ModuleList:
    """The list of blocks: of those that are as long as the config says, the one that holds most weights.

    Raises:
        SpeechsslError: there is none.
    """
    settings: Any = encoder.config
    depths = (getattr(settings, key, None) for key in DEPTHS)
    depth = next((d for d in depths if d is not None), None)
    found = [m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise SpeechsslError(
            f"A model of type '{settings.model_type}' has no list of blocks with hidden states: not supported."
        )
    return max(found, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def _run(
    encoder: nn.Module, blocks: nn.ModuleList, inputs: dict[str, Tensor], layers: frozenset[int]
) -> dict[int, Tensor]:
    """Computes hidden states, layer -> (B, N, D); no block above the highest of `layers` runs.

    A state below the last is the input of the next block. The last one is what transformers says it is, since many
    models have a norm after their last block.
    """
    deepest = max(layers)
    if deepest < len(blocks):
        with _recorded(blocks, layers, deepest) as found:
            try:
                encoder(**inputs)
            except _StopError:
                return found
        raise SpeechsslError(f"{type(encoder).__name__} did not run its block {deepest}: not supported.")
    states = encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
    if states is None or len(states) != len(blocks) + 1:
        raise SpeechsslError(f"{type(encoder).__name__} does not give a hidden state per block: not supported.")
    if len({state.shape for state in states}) != 1:
        raise SpeechsslError(
            f"{type(encoder).__name__}'s last hidden state has another shape: leave it out of `layers`."
        )
    return {layer: states[layer] for layer in layers}


@contextmanager
def _recorded(blocks: nn.ModuleList, layers: frozenset[int], deepest: int) -> Iterator[dict[int, Tensor]]:
    """Keeps the inputs of blocks while it lasts, and stops at that of block `deepest`, counted from 0."""
    found: dict[int, Tensor] = {}

    def hook(_block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], *, index: int) -> None:
        if index in layers:
            found[index] = positional[0] if positional else named["hidden_states"]
        if index == deepest:
            raise _StopError

    handles = [
        block.register_forward_pre_hook(partial(hook, index=index), with_kwargs=True)
        for index, block in enumerate(blocks[: deepest + 1])
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _count_frames(
    encoder: nn.Module, blocks: nn.ModuleList, extractor: Any, arguments: frozenset[str], samples: int
) -> int:
    """Valid frames of an utterance of zeros."""
    inputs = prepare(extractor, torch.zeros(samples), arguments)
    tokens = _first_state(encoder, blocks, inputs)
    mask = inputs.get("attention_mask")
    return int(mask.sum()) if mask is not None and mask.size(1) == tokens.size(1) else tokens.size(1)


@torch.no_grad()
def _first_state(encoder: nn.Module, blocks: nn.ModuleList, inputs: dict[str, Tensor]) -> Tensor:
    """(1, N, D): what enters the first block."""
    return _run(encoder, blocks, inputs, frozenset({0}))[0]


def _groups(pieces: list[tuple[int, dict[str, Tensor]]]) -> Iterator[list[int]]:
    """Indices of pieces of one shape (and one mask), at most GROUP at a time."""
    shapes: dict[tuple[Any, ...], list[int]] = {}
    for index, (_, inputs) in enumerate(pieces):
        key = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        shapes.setdefault(key, []).append(index)
    for group in shapes.values():
        yield from (group[i : i + GROUP] for i in range(0, len(group), GROUP))
