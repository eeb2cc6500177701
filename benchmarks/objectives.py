"""Every pre-training objective in equal time: trained on the demo corpus, then probed by `speechssl run`.

python benchmarks/objectives.py --minutes 15 -o exp/objectives               # all, one seed
python benchmarks/objectives.py --only hubert wav2vec2 --seeds 1 2            # more seeds of some
python benchmarks/objectives.py --table                                       # what there is, as a table

The upstreams are the presets `<family>_tiny`: log-mel frames and the same six blocks, but where the objective is bound
to an architecture of its own. A few steps are timed first; the number of steps is what fits into the minutes. Clusters
of MFCC, where an objective wants labels, come on top, and so does a teacher's training. What is finished is kept.
"""

import argparse
import json
import logging
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import speechssl
from speechssl.data.corpus import open_corpus
from speechssl.jobs import RunOptions
from speechssl.loading import load_upstream
from speechssl.result import load_result
from speechssl.targets.cluster import ClusterConfig, cluster
from speechssl.targets.lloyd import KMeansConfig
from speechssl.train.metrics import read_log
from speechssl.train.run import pretrain

logger = logging.getLogger(__name__)
TRIAL = (30, 20)
"""Steps of the trial, and how many of the last are timed."""
COMMON = (
    "train.batches_per_step=1", "train.min_seconds=0.5", "train.max_seconds=6", "train.clip_norm=1",
    "train.threads=2", "train.log_every=10", "train.save_every=200", "train.accelerator=cpu", "train.precision=bf16",
)  # fmt: skip
GRID = ("train.grid_seconds=0.5",)
BATCH = ("train.batch_seconds=60",)


@dataclass(frozen=True)
class Setting:
    """How one objective is trained here."""

    preset: str
    overrides: Sequence[str] = ()
    labels: bool = False
    """Whether it predicts clusters of MFCC."""
    grid: bool = True
    """Whether crops are cut to a grid, so that nothing is padded."""
    batch: Sequence[str] = BATCH
    teacher: str | None = None
    """The objective whose upstream teaches."""
    notes: str = ""


RATE = ("train.learning_rate=1.5e-3",)
# With twice the rate, and a short warm-up, all frames become alike within a hundred steps.
TEACHER_RATE = ("train.learning_rate=7.5e-4",)
# Short spans, and some loss on frames that are not hidden, leave the plateau of predicting the labels' frequencies.
HUBERT = ("objective.mask_prob=0.65", "objective.mask_length=5", "objective.unmasked_weight=0.5")
SETTINGS: dict[str, Setting] = {
    "hubert": Setting("hubert_tiny", (*RATE, *HUBERT), labels=True),
    # A temperature of 0.1 is made for cosines; what a linear layer gives is too large for a short start then.
    "fast_hubert": Setting(
        "fast_hubert_tiny", (*RATE, *HUBERT, "objective.mask_length=3", "objective.logit_temperature=1"), labels=True
    ),
    "wavlm": Setting("wavlm_tiny", (*RATE, *HUBERT), labels=True),
    "unispeech_sat": Setting("unispeech_sat_tiny", (*RATE, *HUBERT), labels=True),
    # A few thousand steps: the temperature falls as far as in the paper's 277 000.
    "wav2vec2": Setting("wav2vec2_tiny", (*RATE, "objective.temperature=[2.0,0.5,0.999]")),
    "data2vec": Setting("data2vec_tiny", TEACHER_RATE, batch=("train.batch_seconds=20",)),
    "data2vec2": Setting("data2vec2_tiny", TEACHER_RATE, batch=("train.batch_seconds=10",)),
    "dinosr": Setting("dinosr_tiny", TEACHER_RATE, batch=("train.batch_seconds=20",)),
    "best_rq": Setting("best_rq_tiny", RATE),
    "wav2vec": Setting("wav2vec_tiny", RATE),
    "vq_wav2vec": Setting("vq_wav2vec_tiny", RATE),
    "tera": Setting("tera_tiny", ("train.learning_rate=1e-3",)),
    "apc": Setting("apc_tiny", ("train.learning_rate=1e-3",)),
    "npc": Setting("npc_tiny", ("train.learning_rate=1e-3",)),
    "unispeech": Setting(
        "unispeech_tiny", (*RATE, "train.transcripts=text"), grid=False, notes="learns from transcripts too"
    ),
    "distilhubert": Setting(
        "distilhubert_tiny",
        RATE,
        teacher="hubert",
        notes="learns from the upstream of the row hubert, whose time comes on top",
    ),
}
TASKS = {"asr": "cer", "speaker_verification": "eer", "deepfake_detection": "eer"}
LONGER = {"asr": ("train.steps=1500",)}
"""Than in the demo: heads of 500 steps differ by up to 14 points from seed to seed, these by 1 on average."""
HEAD_SEEDS = (0, 1)
BASELINES = ("fbank", "random=hubert_tiny:random")


@dataclass
class Experiment:
    """Where everything is."""

    corpus: Path
    folder: Path
    minutes: float
    probes: Path

    def upstream(self, name: str, seed: int) -> Path:
        return self.folder / name / f"seed{seed}"

    def labels(self) -> Path:
        folder = self.folder / "mfcc"
        config = ClusterConfig(layer=0, kmeans=KMeansConfig(clusters=100))
        cluster(load_upstream("mfcc"), open_corpus(self.corpus), folder, config)
        return folder

    def train(self, name: str, seed: int) -> Path:
        """Trains one objective, unless that is done."""
        setting, folder = SETTINGS[name], self.upstream(name, seed)
        plan = folder.parent / "plan.json"  # all seeds take the steps that the first had time for
        overrides = [*COMMON, *setting.batch, *setting.overrides, f"train.seed={seed}"]
        overrides += GRID if setting.grid else ["train.grid_seconds=null"]
        if setting.teacher is not None:
            overrides.append(f"objective.teacher={self.train(setting.teacher, seed)}")
        labels = [self.labels()] if setting.labels else []
        if not plan.exists():
            trial = folder / "trial"
            pretrain(
                setting.preset, corpus=self.corpus, labels=labels, output=trial,
                overrides=[*overrides, f"train.steps={TRIAL[0]}"],
            )  # fmt: skip
            seconds = sum(line["seconds"] for line in read_log(trial)[-TRIAL[1] // 10 :]) / TRIAL[1]
            shutil.rmtree(trial)
            plan.write_text(json.dumps({"steps": max(int(60 * self.minutes / seconds), 1), "minutes": self.minutes}))
        steps = json.loads(plan.read_text())["steps"]
        logger.info("%s, seed %d: %d steps in about %g minutes.", name, seed, steps, self.minutes)
        pretrain(
            setting.preset, corpus=self.corpus, labels=labels, output=folder,
            overrides=[*overrides, f"train.steps={steps}"],
        )  # fmt: skip
        return folder

    def probe(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Runs the tasks on what is trained, and on the baselines; finished runs are kept."""
        trained = [f"{n}-{s}={self.upstream(n, s)}" for n in names for s in seeds if self.finished(n, s)]
        options = RunOptions(cache_folder=str(self.folder / "cache"), jobs=2, precision="bf16")
        for task in TASKS:
            speechssl.run(
                f"{task}_demo", upstream=[*BASELINES, *trained], corpus=self.corpus, out=self.folder / "runs",
                yaml=self.probes / f"{task}.yaml", overrides=LONGER.get(task, ()),
                seeds=HEAD_SEEDS, options=options,
            )  # fmt: skip

    def table(self) -> str:
        """What was measured, as Markdown: means over the seeds of heads and of pre-training, and the deviation of the
        latter."""
        heads: dict[tuple[str, str, str], list[float]] = {}
        for path in sorted((self.folder / "runs").glob("*/*/seed*/result.json")):
            result = load_result(path)
            label, _, seed = result.upstream.label.partition("-")
            value = result.test.metrics[TASKS[result.task]].value
            heads.setdefault((label, result.task, seed), []).append(100 * value)
        found: dict[str, dict[str, list[float]]] = {}
        for (label, task, _), values in heads.items():
            found.setdefault(label, {}).setdefault(task, []).append(statistics.mean(values))
        lines = [
            "| objective | parameters | steps | hours heard | "
            + " | ".join(f"{t}, {m.upper()} ↓" for t, m in TASKS.items())
            + " |",
            "|---|---|---|---|" + "---|" * len(TASKS),
        ]
        for label, values in sorted(found.items(), key=lambda item: statistics.mean(item[1].get("asr", [100.0]))):
            cells = [_spread(values.get(task, [])) for task in TASKS]
            lines.append(f"| {label} | {' | '.join(self._cost(label))} | {' | '.join(cells)} |")
        notes = [f"{label} {SETTINGS[label].notes}." for label in found if label in SETTINGS and SETTINGS[label].notes]
        return "\n".join([*lines, "", *notes])

    def _cost(self, label: str) -> tuple[str, str, str]:
        folder = self.upstream(label, 0)
        if label not in SETTINGS or not (folder / "log.jsonl").exists():
            return "", "", ""
        log = read_log(folder)
        size = sum(p.numel() for p in load_upstream(folder).parameters())
        hours = sum(line["audio_seconds"] for line in log) / 3600
        return f"{size / 1e6:.1f} M", str(log[-1]["step"]), f"{hours:.1f}"

    def finished(self, name: str, seed: int) -> bool:
        return (self.upstream(name, seed) / "config.json").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/demo"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--only", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--probes", type=Path, default=Path("recipes/demo/default"), help="folder of the tasks' YAML")
    parser.add_argument("--no-probe", action="store_true")
    parser.add_argument("--table", action="store_true", help="train nothing, and print what there is")
    parser.add_argument("-o", "--output", type=Path, default=Path("exp/objectives"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    experiment = Experiment(args.corpus, args.output, args.minutes, args.probes)
    for seed in () if args.table else args.seeds:
        for name in args.only:
            experiment.train(name, seed)
            if not args.no_probe:
                experiment.probe([name], [seed])
    print(experiment.table())


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


if __name__ == "__main__":
    main()
