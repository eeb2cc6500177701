"""`speechssl list`: what is installed."""


def command() -> None:
    """List upstreams and tasks.

    Example: speechssl list
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.registry import find_preset, list_families, list_shipped, list_tasks, list_upstreams
    from speechssl.suite import suite_names

    table = Table("kind", "names")
    families = {name: find_preset(name)[0] for name in list_upstreams()}
    for family in list_families():
        presets = ", ".join(name for name, owner in families.items() if owner == family)
        table.add_row(f"upstream {family}", presets or f"{family}:NAME_OR_FOLDER")
    if shipped := list_shipped():
        table.add_row("of these, trained and shipped", ", ".join(shipped))
    table.add_row("tasks", ", ".join(list_tasks()))
    table.add_row("suites of tasks", ", ".join(suite_names()))
    Console().print(table)
