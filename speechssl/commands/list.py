"""`speechssl list`: what is installed."""


def command() -> None:
    """List upstreams and tasks.

    Example: speechssl list
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.registry import list_families, list_tasks, list_upstreams

    table = Table("kind", "names")
    names = list_upstreams()
    for family in list_families():
        presets = ", ".join(n for n in names if n == family or n.startswith(family + "_"))
        table.add_row(f"upstream {family}", presets or f"{family}:NAME_OR_FOLDER")
    table.add_row("tasks", ", ".join(list_tasks()))
    Console().print(table)
