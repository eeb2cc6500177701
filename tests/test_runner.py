"""The task runner: features once, best by dev, resume, seeds, results; on a tiny corpus and a tiny upstream."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from downstreams.asr.config import AsrConfig
from downstreams.deepfake_detection.config import ConditioningConfig, DeepfakeConfig, SplitSize, SpoofConfig
from speechssl import fitting, streaming
from speechssl.adapt.config import AdaptConfig
from speechssl.cache import FeatureCache
from speechssl.cli import main
from speechssl.commands.run import results_table
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.feature_batches import collate
from speechssl.fitting import Fit, schedule
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.loading import load_upstream
from speechssl.result import Evaluation, RunResult, load_result
from speechssl.runner import resolve_config, run
from speechssl.streaming import StreamedStore
from speechssl.task import FeatureConfig, TrainConfig
from speechssl.upstream_spec import parse_spec

CONFIG = AsrConfig(
    train=TrainConfig(steps=12, batch_seconds=12.0, learning_rate=5e-3, evaluate_every=4),
    label_rate=25.0,
    project_size=12,
    hidden_size=8,
)


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(cache_folder=str(tmp_path / "cache"))


def once(corpus: Path, out: Path, options: RunOptions, **changes: Any) -> list[RunResult]:
    arguments: dict[str, Any] = {"upstream": "fbank", "corpus": corpus, "config": CONFIG, "out": out} | changes
    return run("asr", options=options, **arguments)


def numbers(result: RunResult) -> list[Any]:
    curves = {k: [tuple(point) for point in v] for k, v in result.curves.items()}
    return [curves, {k: v.value for k, v in result.test.metrics.items()}, result.layer_weights, result.best_step]


def test_a_run_leaves_a_result_a_head_and_a_log(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    (result,) = once(tiny_corpus, tmp_path / "exp", options)
    folder = tmp_path / "exp/asr/fbank/seed0"
    assert {"result.json", "task.json", "head.safetensors", "log.jsonl", "transcripts.tsv"} <= {
        p.name for p in folder.iterdir()
    }
    assert not (folder / "checkpoint.pt").exists()
    saved = load_result(folder)
    assert dataclasses.asdict(saved)["test"] == json.loads(json.dumps(dataclasses.asdict(result)["test"]))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in row for row in rows) == 12
    assert [step for step, _ in result.curves["dev wer"]] == [4, 8, 12]
    assert result.features["computed"] == len(list((tiny_corpus / "audio").iterdir())) - 2
    assert result.corpus["fingerprint"] and result.upstream.fingerprint and result.versions["torch"]


def test_equal_seeds_give_equal_numbers_and_others_do_not(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    first, second = once(tiny_corpus, tmp_path / "a", options, seeds=[0, 1])
    (again,) = once(tiny_corpus, tmp_path / "b", options)
    assert numbers(first) == numbers(again)
    assert numbers(first) != numbers(second)


def test_features_are_computed_once_and_finished_runs_are_not_repeated(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = once(tiny_corpus, tmp_path / "exp", options, seeds=[0, 1])
    assert (first.features["from_cache"], second.features["computed"]) == (0, 0)
    upstream = load_upstream("fbank")
    monkeypatch.setattr(type(upstream), "compute", None)  # whoever calls it fails
    forced = dataclasses.replace(options, force=True)
    (cached,) = once(tiny_corpus, tmp_path / "exp", forced, upstream=upstream)
    assert (cached.features["computed"], numbers(cached)) == (0, numbers(first))
    monkeypatch.setattr(Fit, "run", None)
    assert numbers(once(tiny_corpus, tmp_path / "exp", options)[0]) == numbers(first)


def test_the_upstreams_of_a_call_share_the_budget_of_frames(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    budget = 2_000_000
    small = dataclasses.replace(options, cache_gb=budget / 1e9)
    results = once(tiny_corpus, tmp_path / "exp", small, upstream={"a": "fbank", "b": "hubert_tiny:random"})
    assert all(0 < result.features["computed"] < 78 for result in results)
    folders = [path.parent for path in Path(str(options.cache_folder)).glob("*/upstream.json")]
    sizes = [sum(pack.stat().st_size for pack in folder.glob("*.bin")) for folder in folders]
    assert len(sizes) == 2 and all(0.3 * budget < size <= 0.52 * budget for size in sizes)
    assert caplog.text.count("has 0.0 left for this upstream") == 2


def test_another_config_is_run_again(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    (first,) = once(tiny_corpus, tmp_path / "exp", options)
    changed = dataclasses.replace(CONFIG, dropout=0.0)
    (second,) = once(tiny_corpus, tmp_path / "exp", options, config=changed)
    assert second.config["dropout"] == 0.0
    assert numbers(first) != numbers(second)


def test_an_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_one(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = once(tiny_corpus, tmp_path / "whole", options)
    original, steps = Fit._step, 0

    def dies(self: Fit, utterances: Sequence[Any]) -> float:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        return original(self, utterances)

    monkeypatch.setattr(Fit, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        once(tiny_corpus, tmp_path / "cut", options)
    assert steps == 7
    (resumed,) = once(tiny_corpus, tmp_path / "cut", options)
    assert steps == 7 + 8, "it must go on from the evaluation at step 4"
    assert numbers(resumed) == numbers(whole)


KILLED = """
import os, signal, sys
from test_runner import CONFIG
from speechssl.fitting import Fit
from speechssl.jobs import RunOptions
from speechssl.runner import run
original, steps = Fit._step, 0
def dies(self, utterances):
    global steps
    steps += 1
    if steps == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, utterances)
Fit._step = dies
run("asr", upstream="fbank", corpus=sys.argv[1], config=CONFIG, out=sys.argv[2], options=RunOptions(sys.argv[3]))
"""


def test_a_run_that_was_killed_ends_with_the_numbers_of_one_that_was_not(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = once(tiny_corpus, tmp_path / "whole", options)
    command = [sys.executable, "-c", KILLED, str(tiny_corpus), str(tmp_path / "cut"), str(options.cache_folder)]
    paths = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}"
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    original, heard = Fit._step, list[int]()

    def watched(self: Fit, utterances: Sequence[Any]) -> float:
        heard.append(len(utterances))
        return original(self, utterances)

    monkeypatch.setattr(Fit, "_step", watched)
    (resumed,) = once(tiny_corpus, tmp_path / "cut", options)
    assert len(heard) == 8, "it must go on from the evaluation at step 4"
    assert numbers(resumed) == numbers(whole)


def test_a_cut_off_checkpoint_means_a_clean_restart(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    (whole,) = once(tiny_corpus, tmp_path / "whole", options)
    folder = tmp_path / "broken/asr/fbank/seed0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"half a file")
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    (result,) = once(tiny_corpus, tmp_path / "broken", options)
    assert numbers(result) == numbers(whole)
    assert '{"step": 1}\n' not in (folder / "log.jsonl").read_text()


def test_the_best_step_is_chosen_by_dev_and_its_weights_are_tested(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dev is made to look best at step 8: what is tested must be the weights of step 8, whatever test says."""
    kept: dict[int, Tensor] = {}
    original = Fit.evaluate

    def faked(self: Fit, split: str) -> Any:
        found = original(self, split)
        weight = self.probe.state_dict()["head.output.weight"]
        if split == "test":
            kept[-1] = weight.detach().clone()
            return found
        kept.setdefault(self.progress.step, weight.detach().clone())
        value = dataclasses.replace(found.metrics["wer"], value={4: 0.9, 8: 0.1, 12: 0.5}[self.progress.step])
        return dataclasses.replace(found, metrics={**found.metrics, "wer": value})

    monkeypatch.setattr(Fit, "evaluate", faked)
    (result,) = once(tiny_corpus, tmp_path / "exp", options)
    assert result.best_step == 8
    assert torch.equal(kept[-1], kept[8])
    assert not torch.equal(kept[-1], kept[12])


def test_processes_give_the_numbers_of_one_process(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    alone = once(tiny_corpus, tmp_path / "one", options, seeds=[0, 1])
    pooled = once(tiny_corpus, tmp_path / "two", dataclasses.replace(options, jobs=2), seeds=[0, 1])
    for first, second in zip(alone, pooled, strict=True):
        assert numbers(first) == numbers(second)


def test_several_upstreams_go_in_one_call(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    results = once(tiny_corpus, tmp_path / "exp", options, upstream=["fbank", "random=hubert_tiny:random:3", "mfcc"])
    assert [r.upstream.label for r in results] == ["fbank", "random", "mfcc"]
    assert len(results[1].layer_weights) == results[1].upstream.num_layers > 1
    assert sum(results[1].layer_weights) == pytest.approx(1.0, abs=1e-5)
    assert results[1].layer_weights != [1 / results[1].upstream.num_layers] * results[1].upstream.num_layers
    assert "3" in results[1].upstream.weights
    assert len(results_table(results).rows) == 3


def test_crops_bound_the_training_batches(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, max_duration=0.5, steps=2))
    seen: list[int] = []
    original = collate

    def watched(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        states, lengths = original(*args, **kwargs)
        seen.extend(lengths.tolist())
        return states, lengths

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "collate", watched)
        once(tiny_corpus, tmp_path / "exp", options, config=config)
    assert set(seen) == {50}


def test_chosen_layers_and_pooling_reach_the_cache(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    config = dataclasses.replace(CONFIG, features=FeatureConfig(layers=(0, 2)))
    (result,) = once(tiny_corpus, tmp_path / "exp", options, upstream="hubert_tiny:random", config=config)
    assert len(result.layer_weights) == 2


def test_infer_gives_the_transcripts_of_the_test(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    once(tiny_corpus, tmp_path / "exp", options)
    folder = tmp_path / "exp/asr/fbank/seed0"
    rows = [line.split("\t") for line in (folder / "transcripts.tsv").read_text().splitlines()[1:]]
    files = [tiny_corpus / "audio" / f"{name}.flac" for name, _, _ in rows]
    found = infer(folder, files)
    same = sum(found[str(f)] == row[2] for f, row in zip(files, rows, strict=True))
    assert same >= 0.8 * len(rows), "cached features are bf16, so a few characters may differ"


def test_infer_refuses_another_upstream_and_an_unfinished_run(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    once(tiny_corpus, tmp_path / "exp", options, upstream="hubert_tiny:random")
    file = next((tiny_corpus / "audio").iterdir())
    with pytest.raises(SpeechsslError, match="another upstream"):
        infer(tmp_path / "exp/asr/hubert_tiny_random/seed0", [file], upstream="fbank")
    with pytest.raises(SpeechsslError, match="no finished run"):
        infer(tmp_path, [file])


def test_a_bad_file_stops_the_run_or_is_left_out_and_counted(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    (corpus / "audio/aa0-00.flac").write_text("no audio")
    with pytest.raises(SpeechsslError, match=r"aa0-00\.flac"):
        once(corpus, tmp_path / "exp", options)
    skip = dataclasses.replace(options, skip_bad=True)
    (result,) = once(corpus, tmp_path / "exp", skip)
    assert result.features["computed"] + result.features["from_cache"] == 79
    assert result.corpus["fingerprint"] != open_corpus(corpus).fingerprint


def test_a_missing_file_is_named_with_its_line_before_anything_is_computed(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    Path(open_corpus(corpus).utterances("test")[3].path).unlink()
    with pytest.raises(SpeechsslError, match=r"test\.jsonl\.gz, line 4, names \S+\.flac, .* first of 1 missing among"):
        once(corpus, tmp_path / "exp", options)
    assert not Path(options.cache_folder or "").exists()
    (result,) = once(corpus, tmp_path / "exp", dataclasses.replace(options, skip_bad=True))
    assert result.features["computed"] == 79


def test_audio_is_looked_for_once_for_all_heads_folds_and_seeds(
    tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("speechssl.data.corpus._check_audio", lambda split, _: looked.append(split))
    opened = open_corpus(tiny_corpus)
    corpus = opened.needing_audio()
    corpus.utterances("dev")
    for one in (corpus, corpus.needing_audio(), copy.deepcopy(corpus).needing_audio(), opened):
        one.utterances("dev")
    assert looked == ["dev"] and corpus == opened
    opened.needing_audio().utterances("dev")
    assert looked == ["dev", "dev"]


def test_tasks_that_read_audio_while_they_prepare_leave_bad_files_out_too(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    for file in sorted((corpus / "audio").iterdir())[::7]:
        file.write_text("no audio")
    spoof = SpoofConfig(
        seen=("griffin_lim",), unseen=("lpc",), conditioning=ConditioningConfig(seconds=0.4), processes=1,
        train=SplitSize(100, 6), dev=SplitSize(100, 6), test=SplitSize(100, 6),
    )  # fmt: skip
    config = DeepfakeConfig(train=TrainConfig(steps=2, evaluate_every=2, batch_seconds=8.0), spoof=spoof)

    def once_more(options: RunOptions) -> RunResult:
        (result,) = run("deepfake_detection", upstream="fbank", corpus=corpus, config=config, out=tmp_path / "exp",
                        options=options)  # fmt: skip
        return result

    with pytest.raises(SpeechsslError, match=r"\.flac"):
        once_more(options)
    assert once_more(dataclasses.replace(options, skip_bad=True)).features["computed"] > 0


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"steps": -1}, "steps"), ({"evaluate_every": 0}, "evaluate_every"), ({"learning_rate": float("nan")}, "rate")],
)
def test_settings_that_would_train_nothing_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TrainConfig(**changes)


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learning_rate=1e30))
    with pytest.raises(SpeechsslError, match=r"at step .*learning_rate"):
        once(tiny_corpus, tmp_path / "exp", options, config=config)


def test_names_that_nobody_registered_are_answered_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'asr'"):
        resolve_config("asrr")
    with pytest.raises(UnknownNameError, match="'asr_demo'"):
        resolve_config("asr_dmo")
    with pytest.raises(ConfigError, match=r"train\.stepps"):
        resolve_config("asr", overrides=["train.stepps=3"])
    assert resolve_config("asr_demo", overrides=["train.steps=3"])[1].train.steps == 3


def test_upstream_specs_name_label_and_random_seed() -> None:
    spec = parse_spec("a=hubert_tiny:random:7")
    assert (spec.label, spec.name, spec.random_weights) == ("a", "hubert_tiny", 7)
    assert parse_spec("exp/pretrain2/upstream").label == "pretrain2"
    assert parse_spec("fbank", random_weights=2).random_weights == 2
    raw = parse_spec("big=wavlm_large:raw:random")
    assert (raw.label, raw.name, raw.random_weights, raw.normalize) == ("big", "wavlm_large", 0, False)
    assert (parse_spec("wavlm_large:raw").label, parse_spec("wavlm_large").normalize) == ("wavlm_large_raw", None)
    assert parse_spec("my model (best)=fbank").folder == "my_model_best"
    with pytest.raises(ConfigError, match="label=name"):
        parse_spec("x=")


def test_two_upstreams_of_one_label_are_refused(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    with pytest.raises(ConfigError, match="label"):
        once(tiny_corpus, tmp_path / "exp", options, upstream=["fbank", "fbank"])
    with pytest.raises(ConfigError, match="seeds"):
        once(tiny_corpus, tmp_path / "exp", options, seeds=[1, 1])


@pytest.mark.parametrize(
    ("kind", "step", "factor"),
    [("constant", 10, 1.0), ("linear", 1, 0.25), ("linear", 4, 1.0), ("linear", 12, 1 / 9), ("cosine", 12, 0.0301537)],
)
def test_the_learning_rate_warms_up_and_decays(kind: Any, step: int, factor: float) -> None:
    config = TrainConfig(steps=12, warmup_steps=4, schedule=kind)
    assert schedule(config, step) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_layer_weights_learn_at_their_own_rate(
    scale: float, tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    """Adam's first steps are as long as the rate, whatever the gradient."""
    train = dataclasses.replace(CONFIG.train, steps=1, evaluate_every=1, learning_rate=1e-3)
    features = FeatureConfig(layers=(0, 2), weight_rate_scale=scale)
    config = dataclasses.replace(CONFIG, train=train, features=features)
    (result,) = once(tiny_corpus, tmp_path / "exp", options, upstream="hubert_tiny:random", config=config)
    weights = torch.tensor(result.layer_weights)
    moved = (weights.log() - weights.log().mean()).abs().max()
    assert 0.5 * scale * 1e-3 < float(moved) < 2.0 * scale * 1e-3


def test_the_command_line_runs_a_task_and_applies_it(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exp"
    arguments = ["run", "asr_demo", "-u", "base=fbank", "--corpus", str(tiny_corpus), "-o", str(out)]
    settings = ["--set", "train.steps=4", "--set", "train.evaluate_every=2", "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *settings])
    assert stopped.value.code == 0
    assert "base" in capsys.readouterr().out
    file = next((tiny_corpus / "audio").iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["infer", str(out / "asr/base/seed0"), str(file)])
    assert stopped.value.code == 0
    assert list(json.loads(capsys.readouterr().out)) == [str(file)]
    (tmp_path / "wav.scp").write_text(f"whole {file}\n")
    (tmp_path / "segments").write_text("begin whole 0 0.5\nend whole 0.5 -1\n")
    with pytest.raises(SystemExit) as stopped:
        main(["infer", str(out / "asr/base/seed0"), str(tmp_path / "wav.scp"), "--table"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "0.00–0.50 s" in shown and "stretch" in shown and "answer" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["infer", str(out / "asr/base/seed0"), str(file), "--plot", str(tmp_path / "page.html")])
    assert stopped.value.code == 1
    assert "'asr' has no curve over time: leave out `--plot`" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--set", "train.stps=4"])
    assert stopped.value.code == 1
    assert "Did you mean 'steps'" in capsys.readouterr().err


def test_a_sweep_measures_what_dev_chose_and_nothing_else(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    original = Fit.evaluate

    def noted(self: Fit, split: str) -> Evaluation:
        looked.append(f"{self.folder.name} {split}")
        return original(self, split)

    monkeypatch.setattr(Fit, "evaluate", noted)
    results = once(tiny_corpus, tmp_path / "exp", options, sweep="lr=1e-9,5e-3", seeds=[0, 1])
    assert [entry for entry in looked if entry.endswith("test")] == ["seed0 test", "seed1 test"]
    scores = results[0].sweep
    assert set(scores) == {"train.learning_rate=1e-9", "train.learning_rate=5e-3"}
    best = min(scores, key=lambda text: scores[text] or 0.0)
    assert (
        f"train.learning_rate={results[0].config['train']['learning_rate']}"
        == f"train.learning_rate={float(best[20:])}"
    )
    alone = once(
        tiny_corpus,
        tmp_path / "alone",
        options,
        config=dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learning_rate=float(best[20:]))),
        seeds=[0, 1],
    )
    assert [numbers(r) for r in results] == [numbers(r) for r in alone]
    assert not list((tmp_path / "exp").rglob("sweep/*/checkpoint.pt"))
    monkeypatch.setattr(Fit, "fit", None)
    assert numbers(once(tiny_corpus, tmp_path / "exp", options, sweep="lr=1e-9,5e-3")[0]) == numbers(results[0])


def test_a_candidate_that_diverges_loses_and_is_named(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = once(tiny_corpus, tmp_path / "exp", options, sweep="lr=5e-3,1e30")
    assert result.sweep["train.learning_rate=1e30"] is None
    assert result.config["train"]["learning_rate"] == 5e-3
    with pytest.raises(SpeechsslError, match="Every candidate of 'fbank' diverged"):
        once(tiny_corpus, tmp_path / "other", options, sweep="lr=1e30")


@pytest.mark.parametrize("sweep", ["lr", "lr=1,1", "lr=1,", "features.normalize=true,false", "train.max_duration=1,2"])
def test_a_sweep_that_makes_no_sense_is_refused(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, sweep: str
) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        once(tiny_corpus, tmp_path / "exp", options, sweep=sweep)
    untrained = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=0))
    with pytest.raises(ConfigError, match="trains nothing"):
        once(tiny_corpus, tmp_path / "exp", options, sweep="lr=1e-3", config=untrained)


def test_a_subset_has_fewer_utterances_and_steps(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    (whole,) = once(tiny_corpus, tmp_path / "exp", options)
    (part,) = once(tiny_corpus, tmp_path / "part", options, subset=0.5)
    assert part.config["train"]["steps"] == 6 and part.config["subset"] == 0.5
    assert 0 < part.features["from_cache"] < whole.features["computed"]
    assert part.features["computed"] == 0
    with pytest.raises(ConfigError, match="`subset` must be above 0"):
        once(tiny_corpus, tmp_path / "none", options, subset=0.0)


def test_a_run_from_before_a_setting_existed_is_finished(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = once(tiny_corpus, tmp_path / "exp", options)
    path = tmp_path / "exp/asr/fbank/seed0/result.json"
    saved = json.loads(path.read_text())
    del saved["config"]["subset"], saved["config"]["features"]["interface"], saved["sweep"]
    path.write_text(json.dumps(saved))
    monkeypatch.setattr(Fit, "run", None)
    assert numbers(once(tiny_corpus, tmp_path / "exp", options)[0]) == numbers(first)


@pytest.mark.parametrize("jobs", [1, 2])
def test_frames_beyond_the_budget_are_computed_anew_and_change_nothing(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, jobs: int
) -> None:
    whole = once(tiny_corpus, tmp_path / "whole", RunOptions(str(tmp_path / "a")), seeds=[0, 1])
    little = RunOptions(str(tmp_path / "b"), cache_gb=0.5e-3, jobs=jobs)
    part = once(tiny_corpus, tmp_path / "part", little, seeds=[0, 1])
    assert 0 < part[0].features["computed"] < whole[0].features["computed"]
    assert "Raise `--cache-gb`" in caplog.text
    assert [numbers(r) for r in part] == [numbers(r) for r in whole]


def test_an_adapted_run_beyond_the_budget_learns_the_same(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, adapt=AdaptConfig(method="lora", top_layers=1), subset=0.5)
    changes: dict[str, Any] = {"upstream": "hubert_tiny:random", "config": config}
    (whole,) = once(tiny_corpus, tmp_path / "whole", RunOptions(str(tmp_path / "a")), **changes)
    stored = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*.bin"))
    (part,) = once(tiny_corpus, tmp_path / "part", RunOptions(str(tmp_path / "b"), cache_gb=0.5e-9 * stored), **changes)
    assert "Raise `--cache-gb`" in caplog.text
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "b").rglob("*.bin")) <= 0.5 * stored
    assert 0 < part.features["computed"] < whole.features["computed"]
    for name, curve in whole.curves.items():
        assert [value for _, value in part.curves[name]] == pytest.approx([value for _, value in curve], rel=1e-3)


def test_recent_frames_stay_in_memory_within_bounds(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = open_corpus(tiny_corpus).utterances("train")[:12]
    upstream = load_upstream("fbank")
    stored = FeatureCache(tmp_path).features(upstream, utterances)
    kept = FeatureCache(tmp_path).features(upstream, utterances[:4])
    store = StreamedStore(kept, lambda: upstream, {u.id: u for u in utterances[4:]}, precision="float32")
    ids = [u.id for u in utterances]
    for one, other in zip(store.get_all(ids), stored.get_all(ids), strict=True):
        assert torch.equal(one, other)
    states, lengths = store.batch(ids[3:7])
    assert torch.equal(states, stored.batch(ids[3:7])[0]) and lengths.tolist() == [stored.length(i) for i in ids[3:7]]
    assert set(store.ids) == set(ids) and len(store) == 12 and ids[-1] in store
    monkeypatch.setattr(streaming, "MEMORY", stored.get(ids[5]).nbytes)
    store.get_all(ids)
    assert len(store._recent) < 3
    assert torch.equal(store.get(ids[4]), stored.get(ids[4]))


WORKER = """
import multiprocessing, os, time
from speechssl.jobs import _start_worker
def work(devices):
    _start_worker(None, devices)
    print(os.getpid(), flush=True)
    time.sleep(120)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    devices.put("cpu")
    context.Process(target=work, args=(devices,)).start()
    time.sleep(120)
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(WORKER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        # The pipe closes when the last process that holds it has ended.
        ended = threading.Thread(target=parent.stdout.read)
        ended.start()
        ended.join(timeout=30)
        assert not ended.is_alive(), f"process {worker} goes on"
