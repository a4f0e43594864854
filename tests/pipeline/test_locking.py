import multiprocessing
import os
import time

import pytest

from pipeline.locking import RUNNING_FILE, exclusive


def _hold(folder, entered, leave):
    with exclusive(folder, [], print):
        entered.set()
        leave.wait(20)


def _die(folder):
    with exclusive(folder, [], print):
        os._exit(9)  # as by kill -9: nothing is cleaned up


@pytest.fixture
def spawn():
    return multiprocessing.get_context("spawn")


@pytest.mark.slow
def test_the_second_waits_until_the_first_is_done(spawn, tmp_path):
    entered, leave = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_hold, args=(tmp_path, entered, leave))
    first.start()
    assert entered.wait(20)
    said = []

    def say(line):
        said.append(line)
        assert first.is_alive()
        leave.set()

    with exclusive(tmp_path, [], say):
        first.join(20)
        assert first.exitcode == 0
        assert (tmp_path / RUNNING_FILE).read_text() == str(os.getpid())
    assert said == [f"{tmp_path} is in use by process {first.pid}; waiting until it is done ..."]
    assert not (tmp_path / RUNNING_FILE).exists()


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(spawn, tmp_path):
    killed = spawn.Process(target=_die, args=(tmp_path,))
    killed.start()
    killed.join(20)
    assert killed.exitcode == 9
    assert (tmp_path / RUNNING_FILE).exists()
    said = []
    started = time.monotonic()
    with exclusive(tmp_path, [], said.append):
        assert time.monotonic() - started < 10
    assert said == []


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_killed_process_left_half_written_goes(tmp_path, killed):
    work, prepared = tmp_path / "work", tmp_path / "prepared" / "Office"
    tables = work / "tables"
    tables.mkdir(parents=True)
    (tables / "whole").write_text("whole")
    left = [
        work / ".tables.17.tmp" / "users.parquet",
        work / "images" / "ab" / ".ab12.jpg.17.tmp",
        prepared.parent / ".Office.17.tmp" / "items.parquet",
        work / ".tables.16.old" / "whole",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    other = prepared.parent / ".Office-2023.18.tmp"
    other.mkdir()
    retired = prepared.parent / ".Office.17.old"
    retired.mkdir()
    (retired / "manifest.json").write_text("{}")
    if killed:
        (work / RUNNING_FILE).write_text("17")
    with exclusive(work, [prepared], print):
        assert [path.exists() for path in left] == [not killed] * 4
        assert (prepared / "manifest.json").exists() == killed  # retired, never replaced
        assert (tables / "whole").read_text() == "whole"
        assert other.exists()


def test_a_replaced_folder_stays_and_its_predecessor_goes(tmp_path):
    work, prepared = tmp_path / "work", tmp_path / "prepared" / "Office"
    retired = prepared.parent / ".Office.17.old"
    for folder, text in ((prepared, "new"), (retired, "old")):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(text)
    work.mkdir()
    (work / RUNNING_FILE).write_text("17")
    with exclusive(work, [prepared], print):
        assert (prepared / "manifest.json").read_text() == "new"
        assert not retired.exists()
