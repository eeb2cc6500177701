"""wav2vec 2.0 and w2v-BERT of fairseq2 behind our interface.

B batch, S samples, T frames, M mel bands, D width, L blocks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from speechssl.errors import SpeechsslError
from speechssl.frontend.log_mel import LogMelConfig
from speechssl.lengths import conv_output_lengths
from speechssl.loading import build_upstream
from speechssl.upstream import Upstream
from upstreams.fairseq2 import theirs as library
from upstreams.fairseq2.config import Fairseq2Config

SAMPLE_RATE = 16_000
"""Hz, of all of fairseq2's cards."""
MEL = LogMelConfig()
"""Windows and hops of fairseq2's filterbank, which are Kaldi's."""


class Fairseq2Upstream(Upstream):
    """A wav2vec 2.0 or w2v-BERT of fairseq2, computed by it.

    Utterances are computed with those of exactly their length only, without padding: fairseq2's group norms take their
    statistics over padding, too.
    """

    name = "fairseq2"
    family = "fairseq2"

    def __init__(self, config: Fairseq2Config, model: nn.Module | None = None) -> None:
        """
        Args:
            config: of the model.
            model: with weights; None = made with random ones.
        """
        settings = library.make_settings(config)
        options = library.encoder_settings(config.model_family, settings)
        inner: Any = library.make_model(config, settings) if model is None else model
        # (kernel, stride) of what makes frames: the learned convolutions, or the filterbank and what joins its frames.
        convs = [(kernel, stride) for _, kernel, stride in options.feature_extractor_layer_descs]
        stack = options.fbank_stride
        layers = [(MEL.window, MEL.hop), (stack, stack)] if options.use_fbank else convs
        hop = 1
        for _, stride in layers:
            hop *= stride
        super().__init__(
            sample_rate=SAMPLE_RATE,
            frame_rate=SAMPLE_RATE / hop,
            hidden_sizes=(options.model_dim,) * (options.num_encoder_layers + 1),
            normalize=config.normalize,
        )
        self.config = config
        self.layers = layers
        self.num_mel_bins = options.num_fbank_channels if options.use_fbank else 0
        self.most_frames = None if options.pos_encoder_type == "conv" else options.max_seq_len
        self.frontend: Any = inner.encoder_frontend
        self.encoder: Any = inner.encoder

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return conv_output_lengths(lengths, self.layers)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        frames = self.output_lengths(lengths)
        if self.most_frames is not None and int(frames.max()) > self.most_frames:
            raise SpeechsslError(
                f"'{self.name}' takes {self.most_frames / self.frame_rate:.0f} s at most, for which fairseq2 made its "
                "table of positions: split longer audio."
            )
        states: dict[int, Tensor] = {}
        for length in sorted(set(lengths.tolist())):
            rows = lengths == length
            for layer, state in self._compute_equal(waveform[rows, :length], layers).items():
                if layer not in states:
                    states[layer] = state.new_zeros(len(lengths), int(frames.max()), state.size(2))
                padded = nn.functional.pad(state, (0, 0, 0, int(frames.max()) - state.size(1)))
                states[layer] = torch.index_put(states[layer], (rows,), padded)
        return states

    def _compute_equal(self, waveform: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """Hidden states of utterances of one length, (B, S) -> layer -> (B, T, D)."""
        from fairseq2.models.transformer import AttentionBiasCache
        from fairseq2.nn import BatchLayout

        weight = next(self.encoder.parameters())
        inputs = (self._filterbank(waveform) if self.num_mel_bins else waveform).to(weight.device, weight.dtype)
        x, layout = self.frontend(inputs, BatchLayout.of(inputs))
        biases = AttentionBiasCache()
        states = {0: x} if 0 in layers else {}
        for index, block in enumerate(self.encoder.layers[: max(layers)]):
            x = block(x, layout, biases)
            if index + 1 in layers:
                last = index + 1 == len(self.encoder.layers) and self.encoder.layer_norm is not None
                states[index + 1] = self.encoder.layer_norm(x) if last else x
        return states

    def _filterbank(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, mel frames, M), by fairseq2's own converter, as its recipes have it."""
        from fairseq2.data.audio import WaveformToFbankConverter

        convert = WaveformToFbankConverter(
            num_mel_bins=self.num_mel_bins, waveform_scale=2**15, channel_last=True, standardize=True
        )
        audio = waveform.detach().float().cpu()[:, :, None]  # (B, S, 1)
        return torch.stack([convert({"waveform": a, "sample_rate": float(SAMPLE_RATE)})["fbank"] for a in audio])

    def fingerprint_config(self) -> str:
        """Family and configuration of fairseq2."""
        return repr(self.config)


def build(config: Fairseq2Config) -> Fairseq2Upstream:
    """Makes the model with random weights."""
    return Fairseq2Upstream(config)


def wrap(reference: str, *, random_weights: int | None = None) -> Upstream:
    """Loads a model of fairseq2.

    Args:
        reference: the name of a card, or a folder that holds a card and its checkpoint.
        random_weights: seed; None = the card's.

    Raises:
        SpeechsslError: fairseq2 is not installed, has no such card, or can't load its weights.
    """
    card = library.find_card(reference)
    config = library.read_config(card)
    if random_weights is not None:
        return build_upstream("fairseq2", config, seed=random_weights)
    upstream = Fairseq2Upstream(config, library.load_model(card))
    upstream.weights = f"fairseq2:{reference}"
    return upstream
