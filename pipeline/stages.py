"""Stages of a preparation: done once, skipped while their inputs stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.schema import atomic_path, write_json

STAGE_FILE = "stage.json"
LOOK_S = 1.0  # between two looks at the work of others

Echo = Callable[[str], None]
Work = Callable[[Path], dict[str, Any]]


def run_stage(
    name: str, folder: Path, inputs: Any, work: Work, echo: Echo, *, resumable: bool = False
) -> dict[str, Any]:
    """Do the work of a stage unless its folder holds the result for the same inputs.

    Args:
        name: for the lines said.
        folder: where the stage's outputs live; `stage.json` in it marks it as whole.
        inputs: plain data that decides the outputs.
        work: fills the folder that it is given and returns plain data about the result.
        echo: told what happens.
        resumable: `work` gets `folder` itself, with what an interrupted or an older run left
            there. Otherwise it gets an empty folder that takes the place of `folder` at the end.

    Returns:
        What `work` returned, now or when it was done.
    """
    key = stage_key(inputs)
    done = finished_stage(folder, key)
    if done is not None:
        echo(f"{name}: unchanged")
        return done
    echo(f"{name} ...")
    if resumable:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STAGE_FILE).unlink(missing_ok=True)
        result = work(folder)
        write_json({"key": key, "result": result}, folder / STAGE_FILE)
        return result
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        result = work(temporary)
        write_json({"key": key, "result": result}, temporary / STAGE_FILE)
    return result


def finished_stage(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the result of a finished stage with this key, or None."""
    try:
        record = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
        return dict(record["result"]) if record["key"] == key else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None


def unfinish_stage(folder: Path) -> None:
    """Let the next `run_stage` do the work again."""
    (folder / STAGE_FILE).unlink(missing_ok=True)


def say_share(echo: Echo, stage: str) -> Callable[[int, int], None]:
    """Return what says every tenth of the way, given how many are done and how many there are."""
    said = [0]

    def say(done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > said[0]:
            said[0] = tenth
            echo(f"{stage}: {done:,} of {total:,}")

    return say


@contextlib.contextmanager
def watched(
    count: Callable[[], int], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[None]:
    """Report from a thread how far the work of other processes is, while the block runs.

    Args:
        count: how many are done, by then.
        total: how many there are; all are done where the block succeeds.
        progress: called with how many are done, never with fewer than before, and with `total`;
            None: nobody asks.
    """
    if progress is None:
        yield
        return
    is_over = threading.Event()

    def look() -> None:
        done = 0
        while not is_over.wait(LOOK_S):
            done = max(done, count())
            progress(done, total)

    watcher = threading.Thread(target=look, name="watched")
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
    progress(total, total)


def stage_key(inputs: Any) -> str:
    """Hash plain data."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
