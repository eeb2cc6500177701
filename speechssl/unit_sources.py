"""What makes discrete units of speech: a k-means, the quantizer that a model was pre-trained with, or dMel.

A source is an upstream, one of its layers, and what turns that layer's frames into codes; so whatever reads, batches
and checks audio for features does it for units too. A family whose models have a quantizer of their own has a module
`tokenizer` with `build_tokenizer(upstream, reference) -> CodesUpstream`.

B batch, S samples, T frames, D width, G codebooks, V entries of each.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from speechssl.analysis.dmel import DMelConfig, discretize, log_mel, output_lengths
from speechssl.codes_upstream import CodesUpstream
from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from speechssl.quantizer.kmeans import KMeansQuantizer
from speechssl.registry import family_module
from speechssl.targets.kmeans import load_kmeans
from speechssl.upstream import Upstream

OWN, DMEL = "own", "dmel"


@dataclass(frozen=True)
class UnitSource:
    """Where units come from."""

    upstream: Upstream
    layer: int
    encode: Callable[[Tensor], Tensor]
    """Frames (T, D) of that layer -> codes (T, G) int64."""
    groups: int
    entries: int
    quantizer: str
    """What it is, in words."""
    fingerprint: str
    """Of upstream and quantizer: equal units out, equal fingerprint."""


class DMelCodes(CodesUpstream):
    """dMel of the authors' package: 80 codebooks of 16 levels, 40 times a second; see `speechssl.analysis.dmel`."""

    name = DMEL
    family = DMEL

    def __init__(self, config: DMelConfig | None = None) -> None:
        config = config or DMelConfig()
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            groups=config.num_mel_bins,
            entries=2**config.bits,
        )
        self.config = config

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return output_lengths(lengths, self.config)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        codes = discretize(log_mel(waveform, lengths, self.config), self.config.entries)
        return dict.fromkeys(layers, codes.float())

    def fingerprint_config(self) -> str:
        """The spectrogram and the grid."""
        return repr(self.config)


def open_units(
    upstream: str,
    units: str,
    *,
    layer: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    random_weights: int | None = None,
) -> UnitSource:
    """Opens a source of units.

    Args:
        upstream: as `load_upstream` takes it; 'dmel' for dMel.
        units: the folder of `speechssl cluster`, 'own' for the model's quantizer, or 'dmel'.
        layer: must be the one that the k-means is of; None = that one.
        device, dtype, random_weights: see `load_upstream`.

    Raises:
        SpeechsslError: a k-means of another upstream or layer, or a model without a quantizer.
    """
    if DMEL in (upstream, units):
        if upstream != units or layer is not None:
            raise SpeechsslError("dMel hears no upstream and no layer: `speechssl extract dmel INPUTS --units dmel`.")
        return _of_codes(DMelCodes(), "dMel, 16 levels of 80 channels")
    loaded = load_upstream(upstream, device=device, dtype=dtype, random_weights=random_weights)
    if units != OWN:
        return _of_kmeans(loaded, Path(units).expanduser(), layer)
    if layer is not None:
        raise SpeechsslError("A model's own quantizer has its place in the model: leave `--layers` out.")
    if find_spec(f"{_package(loaded)}.tokenizer") is None:
        raise SpeechsslError(
            f"'{loaded.name}' has no quantizer of its own: give the folder of `speechssl cluster` to `--units`."
        )
    build = family_module(loaded.family, "tokenizer").build_tokenizer
    codes: CodesUpstream = build(loaded, None if random_weights is not None else upstream)
    return _of_codes(codes.to(device), "the model's own quantizer")


def _package(upstream: Upstream) -> str:
    return family_module(upstream.family, "config").__name__.rpartition(".")[0]


def _of_codes(codes: CodesUpstream, quantizer: str) -> UnitSource:
    return UnitSource(codes.eval(), 0, Tensor.long, codes.groups, codes.entries, quantizer, codes.fingerprint())


def _of_kmeans(upstream: Upstream, folder: Path, layer: int | None) -> UnitSource:
    kmeans = load_kmeans(folder)
    fitted, name = kmeans.info.get("upstream_fingerprint"), kmeans.info.get("upstream")
    fingerprint = upstream.fingerprint()
    if fitted is not None and fitted != fingerprint:
        raise SpeechsslError(
            f"The k-means in {folder} was fitted on '{name}' with other weights than '{upstream.name}' has here: "
            "name the same upstream."
        )
    own = kmeans.info.get("config", {}).get("layer")
    if layer is not None and own is not None and layer % len(upstream.hidden_sizes) != own % len(upstream.hidden_sizes):
        raise SpeechsslError(f"The k-means in {folder} is of layer {own}, not {layer}: leave `--layers` out.")
    chosen = own if own is not None else layer
    if chosen is None:
        raise SpeechsslError(f"The k-means in {folder} does not say its layer: give it as `--layers`.")
    quantizer = KMeansQuantizer(kmeans.centroids).eval()
    resolved = next(iter(upstream.resolve_layers([int(chosen)])))
    words = f"k-means of {quantizer.entries} clusters, {folder.name}"
    digest = hashlib.sha256(quantizer.centroids.contiguous().numpy().tobytes()).hexdigest()[:16]
    return UnitSource(upstream, resolved, quantizer.encode, 1, quantizer.entries, words, f"{fingerprint} {digest}")
