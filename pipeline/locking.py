"""One preparation of a domain at a time, and no trace of one that was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.stages import Echo

LOCK_FILE = ".lock"
RUNNING_FILE = ".running"  # holds the process number while one works; left behind by a kill


@contextlib.contextmanager
def exclusive(folder: Path, products: list[Path], echo: Echo) -> Iterator[None]:
    """Work in a folder alone; another process that wants to waits until this one is done.

    What an earlier process left half-written, killed while it worked, is removed first.

    Args:
        folder: made if it is not there.
        products: folders beside or outside it that are written by `schema.atomic_path`.
        echo: told if there is somebody to wait for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = folder / RUNNING_FILE
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        echo(f"{folder} is in use by {_owner(running)}; waiting until it is done ...")
        lock.acquire()
    try:
        if running.exists():
            _clean_up(folder, products)
        running.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        running.unlink(missing_ok=True)
        lock.release()


def _owner(running: Path) -> str:
    try:
        return f"process {int(running.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        return "another process"


def _clean_up(folder: Path, products: list[Path]) -> None:
    """Remove temporary files; give a folder back its name that was retired for a new one."""
    for product in (*products, *(path for path in folder.iterdir() if path.is_dir())):
        pattern = f".{escape(product.name)}.*"
        for retired in sorted(product.parent.glob(f"{pattern}.old")):
            if product.exists():
                shutil.rmtree(retired)
            else:
                retired.rename(product)
        for temporary in product.parent.glob(f"{pattern}.tmp"):
            _remove(temporary)
    for temporary in [*folder.rglob(".*.tmp"), *folder.rglob(".*.old")]:
        _remove(temporary)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
