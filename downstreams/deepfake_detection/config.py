"""Settings of deepfake detection; torch-free, so that listing tasks stays fast."""

from dataclasses import dataclass, field
from typing import Literal

from downstreams.deepfake_detection.backends.config import (
    AasistConfig,
    ConformerHeadConfig,
    GmmConfig,
    LcnnConfig,
    Nes2NetConfig,
    ScalableAasistConfig,
    SlsConfig,
)
from speechssl.augment.config import CorruptConfig
from speechssl.errors import ConfigError, UnknownNameError
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig

Kind = Literal["statistics", "aasist", "scalable_aasist", "sls", "nes2net", "conformer", "lcnn", "gmm"]
"""'statistics': convolution, attentive statistics over time, two layers. 'aasist': graph attention. 'scalable_aasist':
the same with multi-head attention and a learned fusion. 'sls': two layers over a window of pooled frames, made for
`features.interface=gated_sum`. 'nes2net': nested Res2Nets. 'conformer': with a class token. 'lcnn': light convolutions,
made for the upstream lfcc. 'gmm': two mixtures of Gaussians, which are fitted: `train.steps=0`."""


@dataclass(frozen=True)
class ConditioningConfig:
    """What both classes go through alike, so that no shortcut separates them (see conditioning.py)."""

    seconds: float = 1.5
    """Duration of every utterance, seconds; shorter ones are left out in both classes."""
    trim_db: float = 35.0
    """Frames this far below the loudest one count as silence where the ends are trimmed, dB."""
    low_hz: float = 80.0
    high_hz: float = 6_500.0
    """The band that all sources share: G.722 recordings and their Vorbis kin end below 7 kHz."""
    snr_db: tuple[float, float] = (30.0, 40.0)
    """White noise added to hide digital silence and noise floors, drawn uniformly from this range, dB."""
    codec: Literal["vorbis", "mp3", "none"] = "vorbis"
    level_db: float = -26.0
    """Root mean square of every utterance, dB below full scale."""


@dataclass(frozen=True)
class SplitSize:
    """How many utterances a split gets."""

    real: int
    per_attack: int
    """Spoofed utterances of each attack, made from the texts and voices of the real ones."""


@dataclass(frozen=True)
class SpoofConfig:
    """Which spoofed speech is made from the corpus, and how much of it."""

    seen: tuple[str, ...] = ("espeak", "world", "griffin_lim")
    """Attacks of train, dev and test; dev and test use voices and settings that train doesn't."""
    unseen: tuple[str, ...] = ("lpc", "hifigan", "flite_diphone", "flite_clustergen", "piper")
    """Attacks of test alone, each of a technology family that no seen attack belongs to."""
    train: SplitSize = field(default_factory=lambda: SplitSize(real=3_000, per_attack=1_500))
    dev: SplitSize = field(default_factory=lambda: SplitSize(real=600, per_attack=200))
    test: SplitSize = field(default_factory=lambda: SplitSize(real=1_000, per_attack=300))
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    seed: int = 0
    processes: int = 2


@dataclass(frozen=True)
class HeadConfig:
    """The classifier of the features; the sizes of 'statistics' are here (see head.py), those of the others below."""

    kind: Kind = "statistics"
    window: float | None = None
    """Seconds that a network hears of each utterance: the first ones, repeated where there are fewer. None =
    all of it. Published systems cut and repeat waveforms, to 64,600 samples or 4.0375 s; here it is their frames."""
    aasist: AasistConfig = field(default_factory=AasistConfig)
    scalable_aasist: ScalableAasistConfig = field(default_factory=ScalableAasistConfig)
    sls: SlsConfig = field(default_factory=SlsConfig)
    nes2net: Nes2NetConfig = field(default_factory=Nes2NetConfig)
    conformer: ConformerHeadConfig = field(default_factory=ConformerHeadConfig)
    lcnn: LcnnConfig = field(default_factory=LcnnConfig)
    gmm: GmmConfig = field(default_factory=GmmConfig)
    width: int = 128
    kernel: int = 3
    """Frames that the first layer sees at once."""
    attention: int = 64
    center: bool = False
    """Whether each utterance's mean over time, which tells of the channel as well as of the attack, is taken away."""
    standardise: bool = False
    """Whether the features go through `speechssl.head.standardise` first."""
    dropout: float = 0.2


@dataclass(frozen=True)
class AugmentConfig:
    """What training utterances are disturbed with (see augment.py); by default nothing is."""

    views: int = 0
    """Disturbed copies of each training utterance that are drawn once and kept: a frozen upstream hears each once."""
    anew: bool = False
    """Whether each visit is disturbed anew instead, for an upstream that is trained from the waveform on
    (`adapt.train_frontend`, or `adapt.cache=false`)."""
    clean: bool = True
    """Whether the utterances themselves are heard beside their copies; published systems disturb every one."""
    rawboost: tuple[int, ...] = ()
    """Algorithms of RawBoost, 1 to 8, of which one is drawn. SSL-AASIST takes 5 for telephony, 3 for coded speech."""
    rawboost_prob: float = 1.0
    room: CorruptConfig = field(default_factory=CorruptConfig)
    """Noise and reverberation, as in `augment.room.noise_prob=0.5 augment.room.noise_snr_db=[5,20]`."""
    codecs: tuple[str, ...] = ()
    """Of vorbis, opus, mp3 and narrowband (telephony at 8 kHz), of which one is drawn: `augment.codecs=[mp3,opus]`."""
    codec_prob: float = 1.0
    compression: tuple[float, float] = (0.0, 1.0)
    """Range that the compression of mp3, Vorbis and Opus is drawn from, from 0 (most bits) to 1 (fewest)."""
    seed: int = 0
    """Of the copies that are kept; what is drawn anew has the run's."""

    def __post_init__(self) -> None:
        wrong = [n for n in self.rawboost if not 1 <= n <= 8]
        if wrong:
            raise ConfigError(f"`augment.rawboost` holds algorithms from 1 to 8, but also {wrong[0]}.")
        if self.codecs:
            from speechssl.augment.codec import CODECS  # only here: it imports what reads audio

            unknown = [codec for codec in self.codecs if codec not in CODECS]
            if unknown:
                raise UnknownNameError("codec", unknown[0], CODECS)
        low, high = self.compression
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"`augment.compression` must be a range within 0 and 1, but is {[low, high]}.")
        if self.views < 0 or (self.views and self.anew):
            raise ConfigError(
                f"`augment.views` must be 0 or more, and 0 where `augment.anew` disturbs each visit, but is "
                f"{self.views}."
            )
        if self.disturbs and not (self.views or self.anew):
            raise ConfigError(
                "`augment` says what to disturb with, but disturbs nothing: set `augment.views` to the number of "
                "copies, or `augment.anew`."
            )
        if (self.views or self.anew) and not self.disturbs:
            raise ConfigError(
                "`augment` has nothing to disturb with: set `augment.rawboost`, `augment.codecs`, or a probability of "
                "`augment.room`."
            )

    @property
    def disturbs(self) -> bool:
        """Whether anything is set that changes a waveform."""
        room = self.room
        return bool(self.rawboost or self.codecs) or any(
            p > 0 for p in (room.pitch_prob, room.reverb_prob, room.white_prob, room.noise_prob)
        )


@dataclass(frozen=True)
class DeepfakeConfig(TaskConfig):
    """Deepfake detection."""

    labels: Literal["made", "corpus"] = "made"
    """'made': the spoofed speech is made from the corpus's real speech, as `spoof` says. 'corpus': each utterance says
    itself what it is (`key`, `attack`), and splits are the corpus's (see labelled.py)."""
    condition: bool = False
    """Whether utterances with labels of their own are brought to the form `spoof.conditioning` too; what is made is."""
    test_corpora: tuple[str, ...] = ()
    """Folders of further corpora with labels of their own whose test is measured too: 'FOLDER' or 'FOLDER:SPLIT'."""
    spoof: SpoofConfig = field(default_factory=SpoofConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    bona_fide_weight: float = 0.5
    """Share of the loss that the bona fide class gets, whatever the number of its utterances."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss, by which utterances count less the surer the head is of them; 0 = cross entropy, 2 is
    usual. Paper: Lin et al. 2017, eq. 4, arXiv:1708.02002."""
    first_seconds: float | None = None
    """Seconds from the beginning of each utterance that are heard, in all splits; None = all of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.focal_gamma >= 0:
            raise ConfigError(f"`focal_gamma` must be 0 (cross entropy) or more, but is {self.focal_gamma}.")
        if self.first_seconds is not None and not self.first_seconds > 0:
            raise ConfigError(f"`first_seconds` must be above 0, or null, but is {self.first_seconds}.")
        if self.augment.anew and self.adapt.method == "frozen":
            raise ConfigError(
                "`augment.anew` disturbs each visit, but a frozen upstream hears an utterance once: set "
                "`augment.views` to the number of disturbed copies, or train the upstream (`adapt.method`)."
            )

    @property
    def conditioned(self) -> bool:
        """Whether what is heard has the form `spoof.conditioning`."""
        return self.labels == "made" or self.condition


_DEMO_SPOOF = SpoofConfig(
    train=SplitSize(real=1_200, per_attack=650),
    dev=SplitSize(real=150, per_attack=60),
    test=SplitSize(real=250, per_attack=70),
)

PRESETS = {
    "deepfake_detection": DeepfakeConfig(
        train=TrainConfig(steps=3_000, batch_seconds=96.0, evaluate_every=200, optimizer="adamw", weight_decay=1e-2),
        features=FeatureConfig(normalize=True),
    ),
    "deepfake_detection_labelled": DeepfakeConfig(
        train=TrainConfig(steps=20_000, batch_seconds=192.0, max_batch_size=48, evaluate_every=500, weight_decay=1e-4),
        features=FeatureConfig(normalize=True),
        labels="corpus",
        head=HeadConfig(window=4.0375),
    ),
    "deepfake_detection_demo": DeepfakeConfig(
        train=TrainConfig(steps=600, batch_seconds=48.0, evaluate_every=40, optimizer="adamw", weight_decay=1e-2),
        features=FeatureConfig(normalize=True),
        spoof=_DEMO_SPOOF,
        head=HeadConfig(width=64, attention=32, standardise=True),
    ),
}
HEADS = {
    "statistics": ("head.kind=statistics",),
    "asp_mlp": ("head.kind=statistics", "head.kernel=1"),
    "aasist": ("head.kind=aasist",),
    "aasist_l": (
        "head.kind=aasist",
        "head.aasist.channels=[32,24]",
        "head.aasist.widths=[24,32]",
        "head.aasist.ratios=[0.4,0.5,0.7,0.5]",
    ),
    "scalable_aasist": ("head.kind=scalable_aasist",),
    "sls": ("head.kind=sls", "head.window=4.0375", "features.interface=gated_sum"),
    "nes2net": ("head.kind=nes2net",),
    "nes2net_x": ("head.kind=nes2net", "head.nes2net.extended=true"),
    "conformer": ("head.kind=conformer",),
    "lcnn": ("head.kind=lcnn", "features.normalize=false"),
    "gmm": ("head.kind=gmm", "features.normalize=false", "train.steps=0"),
}
