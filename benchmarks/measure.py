"""Seconds and peak memory of stages, each side of a comparison in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Result = TypeVar("Result")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Stage(NamedTuple):
    """A stage as measured; peak_mb is the process's resident memory, everything included."""

    name: str
    seconds: float
    peak_mb: float


class Meter:
    """Calls stages and remembers what they took; `stages` in the order of the calls."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def __call__(self, name: str, work: Callable[[], Result], /) -> Result:
        restart_peak()
        began = time.perf_counter()
        result = work()
        self.stages.append(Stage(name, time.perf_counter() - began, resident("VmHWM") / 1e6))
        return result


def restart_peak() -> None:
    """Set the peak back to what is resident now (5: man 5 proc)."""
    _CLEAR.write_text("5", encoding="ascii")


def resident(field: str) -> int:
    """Return the process's resident memory now (VmRSS) or at its peak (VmHWM), bytes."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def in_process(module: str, *arguments: Any) -> list[Stage]:
    """Run `python -m module arguments`; its last line is a JSON list of stages."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return [Stage(*row) for row in json.loads(done.stdout.splitlines()[-1])]
