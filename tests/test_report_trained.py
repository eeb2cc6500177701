"""The report says truly what was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import UPSTREAMS, make_result

from speechssl.report import write_report
from speechssl.report.summary import group_runs
from speechssl.report.trained import what_is_trained
from speechssl.result import RunResult

FIRST, SECOND = list(UPSTREAMS)[1:]


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    return make_result("asr", FIRST, 0, tmp_path / "run")


def trained(result: RunResult, method: str, head: int, featurizer: int, upstream: int, **changes: Any) -> RunResult:
    counts = {"head": head, "featurizer": featurizer, "upstream": upstream}
    config = {**result.config, "adapt": {"method": method}}
    total = sum(counts.values())
    return replace(result, config=config, trained=counts, trained_parameters=total, **changes)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            ("frozen", 1_234_567, 7, 0),
            "The upstream is frozen; only the head (1.2 M parameters) and what joins the layers (7) are trained.",
        ),
        (("frozen", 37_000, 0, 0), "The upstream is frozen; only the head is trained (37 k parameters)."),
        (
            ("lora", 1_234_567, 7, 300_000),
            "The upstream is adapted by LoRA (300 k trained parameters), and the head (1.2 M) is trained with it.",
        ),
        (
            ("full", 37_000, 7, 4_900_000),
            "The upstream is fine-tuned (4.9 M trained parameters), and the head (37 k) is trained with it.",
        ),
    ],
)
def test_the_introduction_says_what_was_trained(result: RunResult, counts: tuple[Any, ...], said: str) -> None:
    assert what_is_trained(group_runs([trained(result, *counts)])) == said


def test_where_nothing_is_trained_or_counts_are_not_known_it_says_so(result: RunResult) -> None:
    nothing = replace(result, config={"train": {"steps": 0}})
    assert what_is_trained(group_runs([nothing])) == "The upstream is frozen, and nothing is trained."
    assert what_is_trained(group_runs([result])) == (
        "The upstream is frozen; only the head is trained (1.2 M parameters)."
    )
    old = replace(trained(result, "bitfit", 0, 0, 0), trained={}, trained_parameters=1_300_000)
    assert what_is_trained(group_runs([old])) == (
        "The upstream is adapted by its biases (BitFit), and the head is trained with it (1.3 M parameters together)."
    )


def test_upstreams_that_differ_are_told_apart(result: RunResult) -> None:
    other = replace(result, upstream=replace(result.upstream, label=SECOND))
    third = replace(result, upstream=replace(result.upstream, label="wider"))
    runs = [
        trained(result, "frozen", 37_000, 7, 0),
        trained(third, "frozen", 74_000, 7, 0),
        trained(other, "adapters", 37_000, 7, 200_000),
    ]
    said = what_is_trained(group_runs(runs))
    assert f"“{FIRST}” and “wider” are frozen; only the head (37 k to 74 k parameters)" in said
    assert f"“{SECOND}” is adapted by adapters (200 k trained parameters), and the head (37 k)" in said


def test_the_page_tells_of_an_adapted_upstream_and_counts_its_parameters(result: RunResult, tmp_path: Path) -> None:
    trained(result, "lora", 1_200_000, 7, 300_000).save(tmp_path / "run")
    text = write_report([tmp_path / "run"], tmp_path / "report").path.read_text(encoding="utf-8")
    assert "The upstream is adapted by LoRA (300 k trained parameters)" in text
    assert "is frozen" not in text
    assert "1.5 M (300 k of the upstream)" in text
