"""Settings of query by example; see README.md for where each comes from."""

from dataclasses import dataclass, field
from typing import Literal

from speechssl.alignment.dtw import DISTANCES, Distance, StepPattern, WarpSettings
from speechssl.alignment.search import SearchSettings
from speechssl.errors import ConfigError
from speechssl.metric.spoken_term import OperatingPoint
from speechssl.task import TaskConfig, TrainConfig


@dataclass(frozen=True)
class QueryByExampleConfig(TaskConfig):
    """SUPERB's query by example: nothing is trained, the layer is chosen on dev."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))
    documents: str = "documents"
    """Split of the corpus that is searched, by the queries of 'dev' and of 'test' alike."""
    truth: Literal["lists", "text"] = "lists"
    """What occurs where: the corpus's lists ground_truth_dev and ground_truth_test; or the transcripts, where a query
    occurs in the documents of its language in which its words follow one another."""
    languages: tuple[str, ...] | None = None
    """Languages that are searched; None = all."""
    max_query_words: int = 3
    """By transcripts: utterances with more words are no queries."""
    min_query_letters: int = 4
    """By transcripts: nor are those with fewer letters, which stand in many other words."""
    head: Literal["dtw", "windows"] = "dtw"
    """'dtw' is SUPERB's; 'windows' compares the means of the frames (`speechssl.alignment.windows`)."""
    distance: Distance = "cosine_exp"
    step_pattern: StepPattern = "asymmetric"
    open_ends: bool = True
    """Whether a query may lie anywhere in a document, or fills it."""
    minmax: bool = True
    """Whether the distances of each query frame from a document are mapped to [0, 1]."""
    standardise: bool = True
    """Whether each dimension of each layer has mean 0 and deviation 1 over all frames of queries and documents."""
    min_query_frames: int = 5
    """Queries with fewer frames score 0 everywhere."""
    standardise_scores: bool = True
    """Whether the scores of each query have mean 0 and deviation 1 over the documents."""
    decision_threshold: float = 2.0
    """A query is said to occur where its score is above this: the decisions of the actual term weighted value."""
    point: OperatingPoint = field(default_factory=OperatingPoint)
    """What misses and false alarms cost; the default is QUESST 2014's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.steps:
            raise ConfigError(f"Query by example trains nothing: `train.steps` must be 0, but is {self.train.steps}.")
        if self.features.pooling != "none":
            raise ConfigError("Query by example compares frames: `features.pooling` must be 'none'.")
        if self.features.normalize or self.features.interface != "weighted_sum":
            raise ConfigError(
                "Query by example takes the layers as they are: leave `features.normalize` and `features.interface`."
            )
        if self.documents in ("dev", "test"):
            raise ConfigError(f"`documents` must be another split than those of queries, but is '{self.documents}'.")
        if self.distance not in DISTANCES:
            raise ConfigError(f"`distance` must be one of {DISTANCES}, but is {self.distance!r}.")
        _ = self.search  # says what is wrong with the pattern

    @property
    def search(self) -> SearchSettings:
        """How the frames are compared."""
        return SearchSettings(self.distance, WarpSettings(self.step_pattern, self.open_ends, self.minmax))


SUPERB = QueryByExampleConfig()
DEMO = QueryByExampleConfig(documents="train", truth="text", languages=("en", "es", "fr", "it", "ru"))
PRESETS = {"query_by_example": SUPERB, "query_by_example_demo": DEMO}
HEADS = {"dtw": ("head=dtw",), "windows": ("head=windows",)}
