"""Settings of tasks that mask a transform."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.head.mask import Activation, Kind
from speechssl.mixing.simulate import SimulationConfig
from speechssl.separation.stft import check_window
from speechssl.separation.targets import Compression, Distance, Target
from speechssl.task import TaskConfig

Metric = Literal["si_sdri", "si_sdr", "stoi", "pesq"]
"""'si_sdri' is the improvement of 'si_sdr' over the mixture, dB."""
MASK_HEADS: dict[str, tuple[str, ...]] = {"blstm": ("head=blstm",), "linear": ("head=linear",)}


@dataclass(frozen=True)
class MaskingConfig(TaskConfig):
    """What separation and enhancement have in common."""

    head: Kind = "blstm"
    num_layers: int = 3
    hidden_size: int = 256
    """Of each direction."""
    dropout: float = 0.1
    """After each layer."""
    activation: Activation = "sigmoid"
    n_fft: int = 1024
    win_length: int = 1024
    """Samples at 16 kHz, as all of these."""
    hop_length: int | None = None
    """None = the upstream's stride, or a fraction of it where the window is too short for that."""
    target: Target = "npsm"
    compression: Compression = "log1p"
    distance: Distance = "mse"
    metric: Metric = "si_sdri"
    """What the best checkpoint is chosen by, and all that is measured on dev."""
    metrics: tuple[Metric, ...] = ("si_sdri", "si_sdr", "stoi", "pesq")
    """Measured on test. 'stoi' and 'pesq' need the packages of the extra 'vc'."""
    examples: int = 4
    """Test utterances whose audio is kept with the result."""
    audio_gb: float = 2.0
    """Memory for waveforms that are held between epochs; changes no number."""
    simulate: SimulationConfig | None = None
    """Makes mixtures of the corpus' own utterances; None = the corpus has them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.max_duration is not None or self.features.pooling != "none":
            raise ConfigError(
                "Masks need every frame: leave `train.max_duration` at null and `features.pooling` at 'none'."
            )
        if self.target == "psm" and self.compression == "log1p":
            raise ConfigError("`target=psm` can be below -1, where log1p is undefined: set `compression=none`.")
        check_window(n_fft=self.n_fft, win_length=self.win_length, hop_length=self.hop_length)
