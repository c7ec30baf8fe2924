"""How results are shown in the terminal."""

from typing import Any

from latentseg.cli.flags import Common, console


def print_results(common: Common, results: list[dict[str, Any]]) -> None:
    """Two tables for each data set and protocol: the numbers, and the IoU of each class."""
    from rich.table import Table

    from latentseg.evaluation.comparison import group_results
    from latentseg.evaluation.results import shown

    for group in group_results(results):
        table = Table(title=f"{group.dataset}, {group.protocol}, {group.n_images} images")
        table.add_column("", overflow="fold")
        for heading in group.columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in group.rows:
            numbers = [shown(row.numbers.get(key)) for key in group.columns.values()]
            table.add_row(row.label, *numbers)
        console(common).print(table)
        if group.classes:
            rows = [row for row in group.rows if row.numbers.get("class_iou")]
            table = Table(title="IoU of each class")
            table.add_column("")
            for row in rows:
                table.add_column(row.label, justify="right", overflow="fold")
            for name in group.classes:
                table.add_row(name, *(shown(row.numbers["class_iou"].get(name)) for row in rows))
            console(common).print(table)
