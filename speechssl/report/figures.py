"""The figure blocks of the report: which curves are drawn, and the text beside each."""

from collections.abc import Mapping, Sequence

import numpy as np

from speechssl.report.blocks import Cell, Figure, Table
from speechssl.report.collect import Pretraining
from speechssl.report.plots import Band, band, curves_figure, layers_figure
from speechssl.report.summary import Group
from speechssl.report.words import (
    better_words,
    capital,
    direction,
    format_count,
    format_number,
    format_seconds,
    is_rate,
    join_words,
    metric_title,
)

PRETRAINING_KEYS: Mapping[str, tuple[str, ...]] = {
    "loss": ("masked_loss", "loss", "train_loss"),
    "held-out loss": ("dev_loss", "valid_loss", "heldout_loss"),
    "masked accuracy": ("masked_accuracy", "accuracy_masked", "accuracy", "acc_m"),
    "held-out masked accuracy": ("dev_masked_accuracy", "dev_accuracy_masked", "dev_accuracy", "valid_accuracy"),
    "unmasked accuracy": ("unmasked_accuracy", "accuracy_unmasked", "acc_u"),
    "learning rate": ("learning_rate", "lr"),
    "gradient norm": ("gradient_norm", "grad_norm"),
    "perplexity of the clusters": ("code_perplexity", "perplexity"),
    "perplexity of the predictions": ("prediction_perplexity",),
    "seconds of audio per second": ("audio_per_second", "audio_seconds_per_second", "throughput"),
}
"""Panel -> the keys that are taken for it, the first that is logged."""
_EXPLAINED = {
    "loss": "Mean cross-entropy over the masked frames",
    "held-out loss": "The loss on utterances that training does not see",
    "masked accuracy": "Share of masked frames whose cluster is predicted",
    "held-out masked accuracy": "The same on utterances that training does not see",
    "unmasked accuracy": "Share of visible frames whose cluster is predicted",
    "learning rate": "The schedule: warm-up, then decay",
    "gradient norm": "Norm of the gradient before clipping",
    "perplexity of the clusters": "How many clusters occur in effect among the masked frames",
    "perplexity of the predictions": "How many clusters the model predicts in effect; near 1 it has collapsed",
    "seconds of audio per second": "Speed of training",
}


def pretraining_figures(logs: Sequence[Pretraining]) -> list[Figure]:
    """Loss, masked accuracy and whatever else of the known list was logged, all runs in one panel each."""
    figures = []
    for title, keys in PRETRAINING_KEYS.items():
        series: dict[str, tuple[int, Band]] = {}
        whole: list[str] = []  # logs without the loss of the masked frames alone
        for index, log in enumerate(logs):
            key = next((k for k in keys if k in _columns(log)), None)
            data = band([_columns(log)[key]]) if key else None
            if data is not None and data.steps.size > 1:
                series[log.name] = (index, data)
                whole += [log.name] * (key == "loss")
        if series:
            figures.append(_pretraining_figure(title, series, whole))
    return figures


def _columns(log: Pretraining) -> dict[str, Sequence[tuple[int, float]]]:
    """The columns by key, with 'train/loss' and 'masked accuracy' written as 'loss' and 'masked_accuracy'."""
    return {k.removeprefix("train/").replace("/", "_").replace(" ", "_"): v for k, v in log.columns.items()}


def _pretraining_figure(title: str, series: Mapping[str, tuple[int, Band]], whole: Sequence[str]) -> Figure:
    way = direction(title) if "rate" not in title else None
    what = _EXPLAINED.get(title, title.capitalize())
    if whole:
        loss = "the training loss, which may count unmasked frames too"
        what = capital(loss) if len(whole) == len(series) else f"{what} (of {join_words(whole)}: {loss})"
    tail = f"; {better_words(way)}" if way else ""
    caption = f"{what}, over the steps{tail}."
    if "loss" in title or "accuracy" in title:
        caption += " Runs that predict different clusters have different scales: compare a run with itself."
    ends = join_words(
        [f"{n} goes from {_written(d.mean[0], title)} to {_written(d.mean[-1], title)}" for n, (_, d) in series.items()]
    )
    svg = curves_figure(series, ylabel=title, percent="accuracy" in title)
    return Figure(title.capitalize(), caption, svg, f"Line plot of {title} over pre-training steps: {ends}.")


def _written(value: float, title: str) -> str:
    return f"{100 * value:.1f} %" if is_rate(title) and "rate" not in title else format_number(value)


def pretraining_table(logs: Sequence[Pretraining]) -> Table:
    """Steps, time and speed of each pre-training run."""
    rows = []
    for log in logs:
        columns = _columns(log)
        speed, loss, accuracy = (
            next((columns[k] for k in PRETRAINING_KEYS[panel] if k in columns), ())
            for panel in ("seconds of audio per second", "loss", "masked accuracy")
        )
        seconds = [v for _, v in columns.get("seconds", ())]
        rows.append(
            [
                Cell(log.name),
                Cell(format_count(max(c[-1][0] for c in columns.values()))),
                Cell(format_seconds(sum(seconds)) if seconds else "–"),
                Cell(format_count(float(np.median([v for _, v in speed]))) if speed else "–"),
                Cell(format_number(loss[-1][1]) if loss else "–"),
                Cell(f"{100 * accuracy[-1][1]:.1f} %" if accuracy else "–"),
            ]
        )
    names = ("Run", "Steps", "Wall time", "Times real time (median)", "Last loss", "Last masked accuracy")
    caption = (
        "Wall time: the sum of the logged stretches, whatever interruptions there were. Times real time: seconds of "
        "audio that training takes in per second of wall time; higher is faster."
    )
    return Table("Pre-training runs", caption, [Cell(n) for n in names], rows)


def curve_figures(groups: Sequence[Group], colours: Mapping[str, int]) -> list[Figure]:
    """One panel for each curve of a task, such as the train loss and the dev metric."""
    figures = []
    for name in list(dict.fromkeys(n for g in groups for r in g.results for n in r.curves)):
        series = {}
        for group in groups:
            data = band([r.curves[name] for r in group.results if name in r.curves])
            if data is not None and data.steps.size > 1:
                series[group.label] = (colours[group.label], data)
        if series:
            figures.append(_curve_figure(name, series, groups[0]))
    return figures


def _curve_figure(name: str, series: Mapping[str, tuple[int, Band]], group: Group) -> Figure:
    primary = group.metric in name.split()
    way = ("up" if group.higher_is_better else "down") if primary else direction(name)
    band_words = "The band is the range of the seeds." if any(len(g.results) > 1 for g in (group,)) else ""
    caption = (
        f"{capital(metric_title(name))} over the training steps of the head; {better_words(way)}. {band_words}".strip()
    )
    ends = join_words([f"{label} ends at {_end(d, name)}" for label, (_, d) in series.items()])
    title = metric_title(name)
    svg = curves_figure(series, ylabel=title, percent=is_rate(name))
    return Figure(capital(title), caption, svg, f"Line plot of {title} over steps: {ends}.")


def _end(data: Band, name: str) -> str:
    return f"{100 * data.mean[-1]:.1f} %" if is_rate(name) else format_number(float(data.mean[-1]))


def layer_figure(groups: Sequence[Group], colours: Mapping[str, int]) -> Figure | None:
    """Weights that the task learned for the layers; None where no upstream has several layers with weights."""
    series: dict[str, tuple[int, np.ndarray]] = {}
    for group in groups:
        lengths = {len(r.layer_weights) for r in group.results}
        if len(lengths) == 1 and lengths.pop() > 1:
            weights = np.mean([r.layer_weights for r in group.results], axis=0)
            series[group.label] = (colours[group.label], weights)
    if not series:
        return None
    single = [g.label for g in groups if all(len(r.layer_weights) == 1 for r in g.results)]
    caption = (
        "Softmax weights of the learned sum over layers, mean over the seeds. A high bar means that the task draws on "
        "this layer; the dotted line is the weight that all layers start with."
    )
    caption += f" {join_words(single)}: one layer only." if single else ""
    peaks = join_words(
        [f"{label} weighs layer {int(w.argmax())} most ({w.max():.2f})" for label, (_, w) in series.items()]
    )
    return Figure("Layer weights", caption, layers_figure(series), f"Bar plot of layer weights: {peaks}.")
