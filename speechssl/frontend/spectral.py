"""The spectral baselines as upstreams: one layer of normalised features, no weights.

B batch, S samples, T frames, C channels.
"""

from typing import Any

from torch import Tensor

from speechssl.frontend.lfcc import Lfcc
from speechssl.frontend.log_mel import LogMel, LogSpectrum, Mfcc, normalize_frames, with_deltas
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream


class SpectralUpstream(Upstream):
    """Spectral features and, if asked for, first and second deltas, and mean and variance normalised per utterance.

    Paper: the FBANK and MFCC baselines of Yang et al. 2021, SUPERB, arXiv:2105.01051.
    """

    def __init__(
        self,
        spectrum: LogMel | LogSpectrum | Mfcc | Lfcc,
        *,
        family: str,
        config: Any,
        cmvn: bool,
        deltas: bool = True,
        delta_window: int = 5,
    ) -> None:
        """
        Args:
            spectrum: (B, S) -> (B, T, C).
            family: the family's folder, for saving.
            config: the family's frozen config, for saving and fingerprints.
            cmvn: whether each channel has mean 0 and deviation 1 over the utterance.
            deltas: whether there are 3 C channels, the deltas among them.
            delta_window: frames that a delta is the slope over, odd.
        """
        options = spectrum.options
        super().__init__(
            sample_rate=options.sample_rate,
            frame_rate=options.sample_rate / options.hop,
            hidden_sizes=((3 if deltas else 1) * spectrum.width,),
        )
        self.name = family
        self.family = family
        self.config = config
        self.spectrum = spectrum
        self.cmvn = cmvn
        self.deltas = deltas
        self.delta_window = delta_window

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.spectrum.output_lengths(lengths)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`; the only layer is 0, (B, T, C or 3 C) float32."""
        frames = self.output_lengths(lengths)
        features = self.spectrum(waveform)
        if self.deltas:
            features = with_deltas(features, frames, window=self.delta_window)
        if self.cmvn:
            features = normalize_frames(features, frames, correction=1)
        else:
            features = features.masked_fill(lengths_to_padding_mask(frames, features.size(1))[:, :, None], 0.0)
        return dict.fromkeys(layers, features)

    def fingerprint_config(self) -> str:
        """The family's config decides everything."""
        return repr(self.config)
