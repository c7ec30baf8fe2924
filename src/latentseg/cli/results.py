"""How results are shown in the terminal."""

from typing import Any

from latentseg.cli.common import Common, console


def print_results(common: Common, results: list[dict[str, Any]]) -> None:
    """One table for each data set: the settings measured, then floors and ceiling."""
    from rich.table import Table

    for dataset in dict.fromkeys(result["dataset"] for result in results):
        same = [result for result in results if result["dataset"] == dataset]
        last = same[-1]
        floors = {f"floor: {name}": row for name, row in (last.get("floors") or {}).items()}
        ceiling = last.get("ceiling")
        rows = {row["setting"]: row for row in same} | floors
        if ceiling:
            rows["ceiling: the same student, true masks"] = ceiling
        table = Table(title=f"{dataset}, {last['protocol']}, {last['n_images']} photos")
        table.add_column("", overflow="fold")
        for column in ("acc", "IoU", "pooled IoU", "max F"):
            table.add_column(column, justify="right", no_wrap=True)
        for setting, row in rows.items():
            numbers = (row[name] for name in ("acc", "iou", "iou_pooled", "max_f"))
            table.add_row(setting, *("-" if n is None else f"{n:.3f}" for n in numbers))
        console(common).print(table)
