"""Makes the detector that a config names."""

from typing import get_args

from downstreams.deepfake_detection.backends import sls
from downstreams.deepfake_detection.backends.aasist import Aasist
from downstreams.deepfake_detection.backends.conformer import ConformerDetector
from downstreams.deepfake_detection.backends.gmm import MixtureDetector
from downstreams.deepfake_detection.backends.lcnn import Lcnn
from downstreams.deepfake_detection.backends.nes2net import Nes2Net
from downstreams.deepfake_detection.backends.scalable_aasist import ScalableAasist
from downstreams.deepfake_detection.backends.window import window_frames
from downstreams.deepfake_detection.config import DeepfakeConfig, Kind
from downstreams.deepfake_detection.head import DetectionHead, Detector
from speechssl.errors import ConfigError, UnknownNameError


def build_detector(  # noqa: PLR0911  one for each kind
    config: DeepfakeConfig, size: int, *, frame_rate: float
) -> Detector:
    """Makes a detector, initialised by torch's (seeded) generator.

    Args:
        size: D of the features.
        frame_rate: of the features, Hz.

    Raises:
        ConfigError: settings don't fit each other.
        UnknownNameError: there is no such kind.
    """
    head = config.head
    window = window_frames(head.window, frame_rate)
    match head.kind:
        case "aasist":
            return _aasist(config, size, frame_rate, window)
        case "scalable_aasist":
            return ScalableAasist(size, config=head.scalable_aasist, window=window)
        case "nes2net":
            return Nes2Net(size, config=head.nes2net, window=window)
        case "sls":
            return _sls(config, size, window)
        case "conformer":
            return ConformerDetector(size, config=head.conformer, window=window)
        case "lcnn":
            return Lcnn(size, config=head.lcnn, window=window)
        case "gmm":
            return _gmm(config, size, window)
        case "statistics":
            return _statistics(config, size, window)
        case _:
            raise UnknownNameError("`head.kind`", head.kind, get_args(Kind))


def _aasist(config: DeepfakeConfig, size: int, frame_rate: float, window: int | None) -> Aasist:
    head = config.head
    if head.aasist.front == "sinc" and config.features.normalize:
        raise ConfigError(
            "`head.aasist.front=sinc` takes the filters' output as it is: set `features.normalize=false`."
        )
    detector = Aasist(size, config=head.aasist, window=window)
    if detector.least > frame_rate:
        raise ConfigError(
            f"`head.aasist.front=sinc` makes one node of {detector.least} frames, but features come at "
            f"{frame_rate:g} Hz: use the upstream 'sinc', or `head.aasist.front=projected`."
        )
    return detector


def _sls(config: DeepfakeConfig, size: int, window: int | None) -> sls.Sls:
    if window is None or window < sls.POOL or size < sls.POOL:
        raise ConfigError(
            f"`head.kind=sls` has one input for {sls.POOL} frames of its window by {sls.POOL} dimensions: set "
            "`head.window`, as in `head.window=4.0375`."
        )
    return sls.Sls(size, config=config.head.sls, window=window)


def _gmm(config: DeepfakeConfig, size: int, window: int | None) -> MixtureDetector:
    if config.train.steps or config.adapt.method != "frozen":
        raise ConfigError(
            "`head.kind=gmm` is fitted to what a frozen upstream gives, and takes no steps: set `train.steps=0` and "
            "`adapt.method=frozen`."
        )
    return MixtureDetector(size, config=config.head.gmm, window=window)


def _statistics(config: DeepfakeConfig, size: int, window: int | None) -> DetectionHead:
    head = config.head
    return DetectionHead(
        size,
        width=head.width,
        kernel=head.kernel,
        attention=head.attention,
        dropout=head.dropout,
        center=head.center,
        standardise=head.standardise,
        window=window,
    )
