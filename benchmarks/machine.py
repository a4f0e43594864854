"""What this machine can do at most, and how a thing is measured: apart from everything else.

Two floors stand under every measured time. Operations: floating-point operations that the
algorithm cannot do without, over the rate of this machine's fastest large matrix product.
Bytes: what has to pass between processor and memory at least once, over the rate of a large copy
(bytes read and bytes written both count). Each benchmark says how it counts the two.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawTextHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import resident, restart_peak

MIB = 1 << 20
GIB = 1 << 30
_OUT_OF_MEMORY = "out of memory"


class Peaks(NamedTuple):
    """Measured rates: floating-point operations and bytes, per second."""

    operations: float
    bytes: float

    def floors(self, operations: float, num_bytes: float) -> tuple[float, float]:
        """Return the least seconds that operations and bytes take."""
        return operations / self.operations, num_bytes / self.bytes


def measure_peaks(device: str, dtype: torch.dtype = torch.float32) -> Peaks:
    """Run a large product and a large copy a few times; the fastest counts."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = min(seconds(lambda: torch.mm(left, right), device) for _ in range(8))
    source = torch.zeros(256 * MIB // 4, device=device)
    target = source.clone()
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(8))
    return Peaks(2 * size**3 / product, 2 * source.nbytes / copy)


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Return how long `work` takes."""
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return how long all threads of this process together were busy with `work`.

    With one thread this hardly depends on who else is at work on the machine.
    """
    began = time.process_time()
    work()
    return time.process_time() - began


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


class MemoryMeter:
    """Peak memory since it was made: of the process (VmHWM), or of a GPU's allocator."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            restart_peak()
            self.before = resident("VmRSS")
        else:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the peak in bytes."""
        return resident("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()

    def working(self) -> int:
        """Return by how many bytes the peak is above what was there when the meter was made."""
        return self.peak() - self.before


def limit_memory(num_bytes: int) -> None:
    """Let this process fail instead of the machine when it asks for more."""
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def available_memory() -> int:
    """Return how many bytes the machine could give away now."""
    text = Path("/proc/meminfo").read_text()
    return next(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("MemAvailable"))


def measure_apart(module: str, job: dict[str, Any]) -> dict[str, Any] | None:
    """Run one measurement of a benchmark in a fresh process.

    Returns:
        What the measurement printed, or None where its memory limit did not suffice.
    """
    done = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", module, "--job", json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    if _OUT_OF_MEMORY in done.stderr:
        return None
    raise RuntimeError(f"{module} {job} failed:\n{done.stderr[-3000:]}")


def read_arguments(doc: str | None, *more: Callable[[ArgumentParser], object]) -> Namespace:
    """Read the command line of a benchmark that measures apart.

    Args:
        doc: what the benchmark is.
        more: functions that add options of its own.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each formulation")
    parser.add_argument("--job", help=SUPPRESS)
    for add in more:
        add(parser)
    return parser.parse_args()


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]], job: str) -> None:
    """Do one measurement, in the fresh process, and print what it found."""
    described = json.loads(job)
    if limit := described.get("memory_limit"):
        limit_memory(limit)
    try:
        print(json.dumps(measure(described)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        sys.exit(_OUT_OF_MEMORY)


def repeat(
    module: str, jobs: Sequence[dict[str, Any]], repetitions: int
) -> list[dict[str, Any] | None]:
    """Measure each job several times, by turns, so that a busy moment strikes all of them.

    Returns:
        For each job the median of every number, lists of numbers joined before; None where memory
        did not suffice.
    """
    found: list[list[dict[str, Any] | None]] = [[] for _ in jobs]
    for _ in range(repetitions):
        for results, job in zip(found, jobs, strict=True):
            if None not in results:
                results.append(measure_apart(module, job))
    return [
        _medians([r for r in results if r]) if None not in results else None for results in found
    ]


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {}
    for name, first in results[0].items():
        values = [result[name] for result in results]
        joined = [v for value in values for v in value] if isinstance(first, list) else values
        medians[name] = statistics.median(joined)
        medians[f"{name}_best"] = min(joined)
    return medians


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns as wide as their content."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def describe_machine(device: str, peaks: Peaks) -> str:
    """Return one line about what was measured on."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} threads"
    return (
        f"{device} ({name}), torch {torch.__version__}: {peaks.operations / 1e9:,.0f} GFLOP/s, "
        f"{peaks.bytes / 1e9:,.1f} GB/s, load {Path('/proc/loadavg').read_text().split()[0]}"
    )
