"""`speechssl list`: what is installed."""

from typing import Annotated

import typer


def command(
    task: Annotated[
        str | None, typer.Argument(help="A task, preset or suite: shows presets, heads and every setting.")
    ] = None,
) -> None:
    """List upstreams and tasks, or what can be set of a task.

    The settings are YAML: what `speechssl run` takes by `--config`, or one by one by `--set`. The config.py in the
    task's folder says what each is.

    Example: speechssl list

    Example: speechssl list asr_demo
    """
    if task is not None:
        _show_task(task)
        return
    from rich.console import Console
    from rich.table import Table

    from speechssl.registry import (
        find_preset,
        list_families,
        list_shipped,
        list_tasks,
        list_upstreams,
        shipped_vocoders,
    )
    from speechssl.suite import suite_names

    table = Table("kind", "names")
    families = {name: find_preset(name)[0] for name in list_upstreams()}
    for family in list_families():
        presets = ", ".join(name for name, owner in families.items() if owner == family)
        table.add_row(f"upstream {family}", presets or f"{family}:NAME_OR_FOLDER")
    if shipped := list_shipped():
        table.add_row("of these, trained and shipped", ", ".join(shipped))
    if vocoders := shipped_vocoders():
        table.add_row("vocoders on their features, shipped", ", ".join(vocoders))
    table.add_row("tasks (see `speechssl list TASK`)", ", ".join(list_tasks()))
    table.add_row("suites of tasks", ", ".join(suite_names()))
    Console().print(table)


def _show_task(preset: str) -> None:
    from omegaconf import OmegaConf

    from speechssl.registry import task_module
    from speechssl.runner import resolve_config
    from speechssl.suite import find_suite, suite_names
    from speechssl.variants import known_heads

    if preset in suite_names():
        typer.echo(f"# tasks of {preset}, each with its corpus (`speechssl run {preset} --corpus FOLDER_OF_CORPORA`):")
        for entry in find_suite(preset).entries:
            typer.echo(f"{entry.task}: {entry.corpus}")
        return
    task, config = resolve_config(preset)
    module = task_module(task, "config")
    typer.echo(f"# presets: {', '.join(module.PRESETS)}")
    if heads := known_heads(task, config):
        typer.echo(f"# heads (`speechssl run --heads`): {', '.join(heads)}")
    if folds := getattr(module, "FOLDS", 0):
        typer.echo(f"# folds (`speechssl run --folds`): 1 to {folds}")
    typer.echo(f"# settings of {preset}:")
    typer.echo(OmegaConf.to_yaml(OmegaConf.structured(config)), nl=False)
