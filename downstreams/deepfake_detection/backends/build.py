"""Makes the detector that a config names."""

from downstreams.deepfake_detection.backends.aasist import Aasist
from downstreams.deepfake_detection.backends.window import window_frames
from downstreams.deepfake_detection.config import DeepfakeConfig
from downstreams.deepfake_detection.head import DetectionHead, Detector
from speechssl.errors import ConfigError


def build_detector(config: DeepfakeConfig, size: int, *, frame_rate: float) -> Detector:
    """Makes a detector, initialised by torch's (seeded) generator.

    Args:
        size: D of the features.
        frame_rate: of the features, Hz.

    Raises:
        ConfigError: settings don't fit each other.
    """
    head = config.head
    window = window_frames(head.window, frame_rate)
    if head.kind == "aasist":
        if head.aasist.front == "sinc" and config.features.normalize:
            raise ConfigError(
                "`head.aasist.front=sinc` takes the filters' output as it is: set `features.normalize=false`."
            )
        return Aasist(size, config=head.aasist, window=window)
    return DetectionHead(
        size,
        width=head.width,
        kernel=head.kernel,
        attention=head.attention,
        dropout=head.dropout,
        center=head.center,
        standardise=head.standardise,
    )
