import re
import threading

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mmm4rec import run_folder
from mmm4rec.errors import ConfigError
from mmm4rec.run_folder import (
    RESULTS,
    find_run,
    is_main_process,
    new_run_folder,
    open_run,
    whole_folder,
)


def test_a_folder_is_named_by_the_time_and_the_hash_and_not_made_yet(tmp_path):
    folder = new_run_folder(tmp_path / "finetune", "abc")
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{6}Z-abc", folder.name)
    assert not folder.parent.exists()


def test_a_run_is_begun_carried_on_and_begun_anew(tmp_path):
    first, begun_before = open_run(tmp_path, "abc")
    assert (first.is_dir(), begun_before) == (True, False)
    assert open_run(tmp_path, "abc") == (first, True)
    assert open_run(tmp_path, "def")[0] != first
    (first / RESULTS).write_text("{}")
    second, begun_before = open_run(tmp_path, "abc")
    assert (second > first, begun_before) == (True, False)
    assert find_run(tmp_path, "abc", finished=True) == first


@pytest.fixture
def rank(monkeypatch):
    return lambda number: monkeypatch.setattr(rank_zero_only, "rank", number)


def test_other_processes_wait_for_the_folder_of_the_main_one(monkeypatch, rank, tmp_path):
    monkeypatch.setattr(run_folder, "WAIT_S", 60)
    old, _ = open_run(tmp_path, "abc")
    (old / RESULTS).write_text("{}")  # a finished run is not what they wait for
    made = new_run_folder(tmp_path, "abc")
    timer = threading.Timer(0.3, made.mkdir)
    rank(1)
    timer.start()
    assert open_run(tmp_path, "abc") == (made, True)
    timer.join()


def test_a_process_that_does_not_see_the_folder_says_so(monkeypatch, rank, tmp_path):
    monkeypatch.setattr(run_folder, "WAIT_S", 0.2)
    rank(3)
    message = (
        r"process 3 saw no new folder \S+/\*-abc of the main process in 0.2 seconds. "
        "Next: give all machines one --runs-dir that they share"
    )
    with pytest.raises(ConfigError, match=message):
        open_run(tmp_path, "abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "local_rank", "is_main"),
    [
        ({}, 0, True),
        ({}, 1, False),
        ({"NODE_RANK": "0"}, 0, True),
        ({"NODE_RANK": "1"}, 0, False),  # the first process of the second machine
        ({"GROUP_RANK": "2"}, 0, False),
        ({"NODE_RANK": "0", "GROUP_RANK": "2"}, 0, True),
    ],
)
def test_one_process_on_one_machine_is_the_main_one(
    monkeypatch, rank, environment, local_rank, is_main
):
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rank(local_rank)
    assert is_main_process() is is_main


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_whole_folder_appears_with_its_files(tmp_path):
    target = tmp_path / "runs" / "a"
    with whole_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert _tree(tmp_path) == {"runs/a/x": "1"}
    with whole_folder(target) as folder:  # a second time, over the first
        (folder / "x").write_text("2")
        (folder / "y").write_text("3")
        assert _tree(target) == {"x": "1"}
    assert _tree(tmp_path) == {"runs/a/x": "2", "runs/a/y": "3"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_that_could_not_be_filled_is_not_there(tmp_path, error):
    def fill():
        with whole_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(error):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_only_the_main_process_brings_a_folder_into_place(rank, tmp_path):
    rank(1)
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
    assert list(tmp_path.iterdir()) == []
