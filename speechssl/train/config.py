"""How an upstream is pre-trained."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class PretrainConfig:
    """The optimisation; the defaults are those of HuBERT base (32 GPUs with 87.5 s of audio each).

    Paper: Hsu et al. 2021, sec. 4, arXiv:2106.07447, and fairseq's hubert_base_librispeech.yaml.
    """

    seed: int = 0
    steps: int = 250_000
    batch_seconds: float = 87.5
    """Audio per micro-batch, padding included."""
    batches_per_step: int = 32
    """Micro-batches per optimiser step, over all processes; each accumulates its share."""
    max_batch: int | None = None
    """Most utterances per micro-batch."""
    min_seconds: float = 2.0
    """Shorter utterances are left out, and counted in the log."""
    max_seconds: float = 15.625
    """Longer utterances are cropped at random, anew each epoch."""
    grid_seconds: float | None = None
    """Crops last a multiple of this, and all of a batch as long as its shortest, as in fairseq: no padding, and so few
    shapes that a CPU's just-in-time kernels are compiled once. None = pad to the longest."""
    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01
    """Decoupled, as fairseq's adam."""
    decay_vectors: bool = True
    """Whether biases, gains and other vectors decay too, as in fairseq's older recipes."""
    schedule: Literal["linear", "cosine", "tri_stage", "inverse_sqrt"] = "linear"
    """How the rate falls after the warm-up, see `speechssl.train.optim.learning_rate`."""
    warmup: float = 0.08
    """Share of the steps in which the rate rises linearly to `learning_rate`."""
    hold: float = 0.0
    """Share of the steps in which it then stays there (tri_stage)."""
    final_scale: float = 0.05
    """The last rate over the highest (tri_stage)."""
    clip_norm: float = 10.0
    """Of the gradient of the mean loss per scored frame."""
    precision: Literal["float32", "bf16", "fp16"] = "bf16"
    """Mixed, but for float32. fp16 needs a GPU; steps whose gradients overflow are skipped and counted."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes do: 'ddp' = each holds all weights, 'fsdp' = each a part of every weight (FSDP2), for
    models whose weights, gradients and optimiser state don't fit one device."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """CPU threads of the computation; None = torch's own choice. Bit-exact resumption needs the same number."""
    compile: bool = False
    """Whether torch.compile is used, block by block. On a CPU it needs a C++ compiler and minutes at the start, and was
    never faster over a whole step (docs/pretraining.md)."""
    checkpoint_activations: bool = False
    """Whether the blocks' activations are computed again for the gradient, instead of kept: the same numbers, with less
    memory and about a third more time."""
    log_every: int = 200
    """Steps."""
    save_every: int = 5000
    """Steps."""
    keep: int = 2
    """Checkpoints that are kept."""
    num_workers: int = 2
    """Processes that read audio where the corpus does not fit `cache_gb`; 0 = one thread, in half the CPU time."""
    cache_gb: float = 4.0
    """A corpus up to this size (16-bit samples) is kept in memory once read; 0 = never."""
    max_bad: float = 0.001
    """Share of the utterances that may be unreadable: each is replaced by another one and named in the log. One more
    stops the run."""
    balance: str | None = None
    """A label such as 'language', or 'corpus' where there are several: the seconds of audio that an epoch draws of each
    value are as n ** balance_alpha for the n seconds that there are of it (Conneau et al. 2020, sec. 3,
    arXiv:2006.13979), and their sum is that of all. None = every utterance once."""
    balance_alpha: float = 0.5
    """1 = as the data are, 0 = as much of every value."""
    noise: str | None = None
    """A corpus, manifest or folder of audio files that noise is drawn from, for objectives that mix it in."""
    transcripts: str | None = None
    """The label that is the transcript, such as 'text' or 'phones', for objectives that learn from it; then utterances
    are never cropped, and those longer than `max_seconds` are left out and counted in the log."""
    transcript_units: Literal["characters", "words"] = "characters"
    """What the tokens are: characters, or what stands between spaces (phones)."""
    collapse_steps: int | None = None
    """What stays below one of the objective's `limits` for so many steps stops the run; None = a quarter of the steps,
    at least 500 and at most 5000: short runs are on their first plateau for hundreds."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_seconds", "batches_per_step", "log_every", "save_every", "keep", "max_seconds",
                    "clip_norm", "eps")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, but is {getattr(self, name)}.")
        for name in ("learning_rate", "weight_decay", "min_seconds", "num_workers", "cache_gb"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must not be negative, but is {getattr(self, name)}.")
        if self.max_seconds < self.min_seconds:
            raise ConfigError(
                f"`max_seconds` must be >= min_seconds = {self.min_seconds:g}, but is {self.max_seconds:g}."
            )
        if self.grid_seconds is not None and not 0 < self.grid_seconds <= self.min_seconds:
            raise ConfigError(
                f"`grid_seconds` must be > 0 and <= min_seconds = {self.min_seconds}, but is {self.grid_seconds}."
            )
        for name in ("max_bad", "balance_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be from 0 to 1, but is {getattr(self, name)}.")
        if self.transcripts is not None and self.grid_seconds is not None:
            raise ConfigError("Transcripts belong to whole utterances: set `grid_seconds` to null.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"`warmup` is a share of the steps and must be >= 0 and < 1, but is {self.warmup}.")
        if not 0 <= self.hold <= 1 - self.warmup:
            raise ConfigError(f"`hold` and `warmup` are shares of the steps, but {self.hold} + {self.warmup} > 1.")

    @property
    def patience(self) -> int:
        """`collapse_steps`, or what it stands for."""
        return min(5000, max(500, self.steps // 4)) if self.collapse_steps is None else self.collapse_steps


RUN_KEYS = frozenset(
    {
        "accelerator",
        "strategy",
        "checkpoint_activations",
        "compile",
        "log_every",
        "save_every",
        "keep",
        "num_workers",
        "cache_gb",
        "max_bad",
        "noise",
        "collapse_steps",
        "threads",
    }
)
"""Keys that may differ when a run goes on, since they don't change what is computed."""


def tiny(published: PretrainConfig, **changes: Any) -> PretrainConfig:
    """The optimisation of a `<family>_tiny` with a teacher, which trains in minutes on two cores.

    After a short warm-up, or with a teacher that soon follows a student who has learnt nothing, all frames become
    alike.
    """
    short: dict[str, Any] = {
        "steps": 5_000, "batch_seconds": 20.0, "batches_per_step": 1, "max_seconds": 8.0, "grid_seconds": 0.5,
        "warmup": 0.1, "clip_norm": 1.0,
    }  # fmt: skip
    return replace(published, **(short | changes))
