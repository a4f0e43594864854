"""The folder of a run: how it is named, found again and written to."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mmm4rec.errors import ConfigError

Echo = Callable[[str], None]
RESULTS = "results.json"
WAIT_S = 60  # until the folder of the main process must be seen; it may still read its data


def find_run(parent: Path, digest: str, *, finished: bool) -> Path | None:
    """Return the newest run folder of this hash that has results, or has none."""
    found = [f for f in parent.glob(f"*-{digest}") if (f / RESULTS).is_file() == finished]
    return max(found, default=None)


def is_main_process() -> bool:
    """Return whether this process is the one of a distributed run that writes and speaks.

    Before there is a Trainer, Lightning knows the place of a process on its own machine only.
    """
    first_machine = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) == 0
    return first_machine and _rank() == 0


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))


def new_run_folder(parent: Path, digest: str) -> Path:
    """Return a folder, not made yet, named by the time and what it is a run of."""
    return parent / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{digest}"


def open_run(parent: Path, digest: str) -> tuple[Path, bool]:
    """Return the folder of a run and whether it was begun before: the unfinished one, or a new one.

    Only the main process names and makes a folder. All others, on whatever machine and however
    they were started, wait until they see it.

    Raises:
        ConfigError: they do not see it.
    """
    if not is_main_process():
        return _wait_for_run(parent, digest), True
    if unfinished := find_run(parent, digest, finished=False):
        return unfinished, True
    folder = new_run_folder(parent, digest)
    folder.mkdir(parents=True)
    return folder, False


def _wait_for_run(parent: Path, digest: str) -> Path:
    until = time.monotonic() + WAIT_S
    while (folder := find_run(parent, digest, finished=False)) is None:
        if time.monotonic() > until:
            raise ConfigError(
                f"process {_rank()} saw no new folder {parent}/*-{digest} of the main "
                f"process in {WAIT_S} seconds. Next: give all machines one --runs-dir that they "
                "share, the same data and the same settings"
            )
        time.sleep(0.1)
    return folder


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result was made with."""
    names = ("mmm4rec", "torch", "lightning", "torchmetrics", "numpy", "pyarrow", "mamba-ssm")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block succeeds."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except Exception as error:
        error.add_note(f"while writing {path}")  # a full disk does not say which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files come to `path` if the block succeeds, or else nowhere.

    On other processes than the main one nothing comes of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if is_main_process():
            _move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    for file in temporary.iterdir():
        file.replace(path / file.name)


def write_json(path: Path, value: Any) -> None:
    """Write plain data atomically as JSON, from the main process only."""
    if not is_main_process():
        return
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, whole or as they were before.

    Lightning itself writes to the system's temporary folder and copies from there: a disk that
    fills up, or a kill, would leave half of the only file to resume from.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint to a local path; `storage_options` is not used."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()  # writing to a file, PyTorch would hide the reason of a failure
        torch.save(checkpoint, buffer)
        with atomic_file(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


@contextmanager
def logged(folder: Path, echo: Echo) -> Iterator[Echo]:
    """Yield an echo that also writes to log.txt; other processes than the main one are silent."""
    if not is_main_process():
        yield lambda line: None
        return
    with (folder / "log.txt").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
            log.flush()
            echo(line)

        yield say
