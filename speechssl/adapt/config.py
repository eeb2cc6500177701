"""Settings of how an upstream is adapted to a task."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError

Method = Literal["frozen", "full", "adapters", "lora", "prefix", "bitfit", "distill"]
Target = Literal["query", "key", "value"]


@dataclass(frozen=True)
class AdaptConfig:
    """What of the upstream is trained with the head, and how.

    Chen et al. 2022, arXiv:2210.06175, compare these methods on SUPERB; Thomas et al. 2022, arXiv:2202.03218, put
    adapters into wav2vec 2.0 for ASR, with a width of 256, and find that those of the top half of the blocks suffice.
    """

    method: Method = "frozen"
    """'frozen': only the layers' weights and the head are trained. 'full': the model's own weights, see `top_layers`
    and `train_frontend`. 'adapters': two bottlenecks per block (Houlsby et al. 2019). 'lora': low-rank updates of
    attention (Hu et al. 2021). 'prefix': keys and values that every frame attends to (Li and Liang 2021). 'bitfit':
    the biases of the blocks (Ben Zaken et al. 2021). 'distill': a student of its first blocks, which learns from it
    and from the task (Heo et al. 2023)."""
    learning_rate: float = 1e-4
    """Of the upstream's topmost part; `train.schedule` applies to it as to `train.learning_rate`, the head's. fairseq
    fine-tunes wav2vec 2.0 base with 3e-5."""
    layer_decay: float = 1.0
    """The rate of each block is this times that of the block above; what lies below the blocks counts as one."""
    top_layers: int | None = None
    """Only what makes the topmost so many hidden states is adapted; None = everything."""
    train_frontend: bool = False
    """For 'full': whether the frontend is trained too. wav2vec 2.0 (Baevski et al. 2020, sec. 4.3) keeps it."""
    freeze_steps: int = 0
    """Steps at the beginning in which the head alone is trained. fairseq: 0 to 10 000."""
    layerdrop: float = 0.0
    """Probability that a step passes by an adapted block, whose input is its output then."""
    mask_prob: float = 0.0
    """Expected fraction of frames that training hides from the blocks if spans did not overlap; fairseq's base_100h:
    0.65."""
    mask_length: int = 10
    """Frames of a span."""
    channel_mask_prob: float = 0.0
    """The same for channels, which are set to 0; fairseq's base_100h: 0.5."""
    channel_mask_length: int = 64
    adapter_width: int = 64
    """Of the bottlenecks."""
    adapter_norms: bool = True
    """Whether the layer norms of adapted blocks are trained with their adapters, as Houlsby et al. do."""
    lora_rank: int = 8
    lora_alpha: float = 8.0
    """Low-rank updates are multiplied by alpha / rank."""
    lora_targets: tuple[Target, ...] = ("query", "value")
    """Which projections are updated; the paper's choice (sec. 4.2 and 7.1)."""
    prefix_length: int = 16
    """Keys and values per block and head."""
    student_layers: int = 4
    """Blocks of the student; the authors' code makes 4 of 24. Its bottlenecks have `adapter_width`."""
    prune_rates: tuple[float, ...] = ()
    """For 'full': shares of the weights of each matrix of the blocks, the smallest ones, that are set to 0 and learn
    anew (Prasad et al. 2022, PADA): the first at the beginning, each other `prune_every` steps later."""
    prune_every: int = 1000
    prune_like: str | None = None
    """An upstream of the same shape that was fine-tuned for such a task, whose weights say which are small at the
    beginning; None = the upstream's own."""
    max_batch_seconds: float | None = None
    """Of audio that goes through the upstream at once; larger batches are cut into parts whose gradients are added
    up. None = whole batches."""
    cache: bool = True
    """Whether what lies below everything that is trained is computed once and kept (in float32), where nothing is
    hidden from it."""

    def __post_init__(self) -> None:
        self._check_probabilities()
        for name in ("learning_rate", "layer_decay", "lora_alpha", "max_batch_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"`adapt.{name}` must be above 0, but is {value}.")
        for name in (
            "adapter_width",
            "student_layers",
            "lora_rank",
            "prefix_length",
            "top_layers",
            "mask_length",
            "channel_mask_length",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`adapt.{name}` must be 1 or more, but is {value}.")
        if not all(0 < rate < 1 for rate in self.prune_rates) or self.prune_every < 1:
            raise ConfigError(
                f"`adapt.prune_rates` must lie between 0 and 1, and `adapt.prune_every` be 1 or more, but they are "
                f"{list(self.prune_rates)} and {self.prune_every}."
            )
        if self.prune_rates and self.method != "full":
            raise ConfigError(f"`adapt.prune_rates` is for `adapt.method=full`, but that is '{self.method}'.")
        if self.freeze_steps < 0:
            raise ConfigError(f"`adapt.freeze_steps` must be 0 or more, but is {self.freeze_steps}.")
        if not self.lora_targets or len(set(self.lora_targets)) != len(self.lora_targets):
            raise ConfigError(f"`adapt.lora_targets` must be distinct and at least one, but is {self.lora_targets}.")

    def _check_probabilities(self) -> None:
        for name in ("layerdrop", "mask_prob", "channel_mask_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"`adapt.{name}` must be 0 or more and below 1, but is {getattr(self, name)}.")

    @property
    def hides(self) -> bool:
        """Whether training hides frames or channels from the blocks."""
        return self.mask_prob > 0 or self.channel_mask_prob > 0
