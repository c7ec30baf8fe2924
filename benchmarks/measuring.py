"""What the benchmarks share: the machine, time per repetition, peak memory of a fresh process."""

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Row = Mapping[str, float | int | str]
LOAD = os.getloadavg()[0]  # before the benchmark itself adds to it


def in_fresh_process(work: Callable[..., Row], *arguments: Any) -> dict[str, float | int | str]:
    """Runs `work` alone in a new process; its row gains that process's peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_peak, work, arguments).result()


def _with_peak(work: Callable[..., Row], arguments: Sequence[Any]) -> dict[str, float | int | str]:
    row = {**work(*arguments), "peak MB": round(peak_bytes() / 1e6)}
    import torch

    if torch.cuda.is_initialized():
        row["GPU MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return row


def peak_bytes() -> int:
    """The largest resident memory of this process so far, torch and libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss on Linux still counts the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def seconds_each(work: Callable[[], object], device: Any, *, seconds: float) -> float:
    """Median time of one call of `work`, after one call to warm up, over at least 3 calls."""
    work()
    finish(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        finish(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def finish(device: Any) -> None:
    """Waits until `device` has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def machine(device: str) -> dict[str, str | int]:
    """What the numbers were measured on."""
    import torch

    import latentseg
    from latentseg.devices import has_fast_bf16, pick_device

    picked = pick_device(device)
    described = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads of torch": torch.get_num_threads(),
        "load when it began": f"{LOAD:.1f}",
        "device": str(picked),
        "bf16 in hardware": str(has_fast_bf16(picked)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "latentseg": latentseg.__version__,
    }
    if picked.type == "cuda":
        described["device"] = torch.cuda.get_device_name(picked)
    return described


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def show(title: str, rows: Sequence[Row], *, device: str, json_file: Path | None) -> None:
    """Prints the rows as a Markdown table with the machine below; writes them as JSON if asked."""
    described = machine(device)
    table = Table(box=box.MARKDOWN)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    print(f"{title}\n")
    Console(width=160).print(table)
    print("\n" + ", ".join(f"{key} {value}" for key, value in described.items()))
    if json_file is not None:
        result = {"title": title, "machine": described, "rows": [dict(row) for row in rows]}
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _shown(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
