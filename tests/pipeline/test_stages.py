import threading

import pytest

from pipeline import stages
from pipeline.stages import run_stage, watched


def _run(folder, inputs, work, resumable=False):
    lines = []
    result = run_stage("stage", folder, inputs, work, lines.append, resumable=resumable)
    return result, lines


@pytest.mark.parametrize("resumable", [False, True])
def test_a_stage_is_done_once_and_again_when_its_inputs_change(tmp_path, resumable):
    calls = []

    def work(folder):
        calls.append(folder)
        (folder / "output").write_text(str(len(calls)))
        return {"call": len(calls)}

    folder = tmp_path / "stage"
    assert _run(folder, {"k": 5}, work, resumable) == ({"call": 1}, ["stage ..."])
    assert _run(folder, {"k": 5}, work, resumable) == ({"call": 1}, ["stage: unchanged"])
    assert _run(folder, {"k": 6}, work, resumable) == ({"call": 2}, ["stage ..."])
    assert (folder / "output").read_text() == "2"


def _interrupted(folder):
    (folder / "half").write_text("half")
    raise KeyboardInterrupt


def _finish(folder):
    return {"found": sorted(path.name for path in folder.iterdir())}


def test_an_interrupted_stage_leaves_nothing_and_runs_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "stage", 1, _interrupted)
    assert list(tmp_path.iterdir()) == []
    assert _run(tmp_path / "stage", 1, _finish)[0] == {"found": []}


def test_a_resumable_stage_finds_what_it_had(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "stage", 1, _interrupted, resumable=True)
    assert _run(tmp_path / "stage", 1, _finish, resumable=True)[0] == {"found": ["half"]}


def test_a_resumable_stage_that_starts_anew_is_not_taken_for_whole(tmp_path):
    folder = tmp_path / "stage"
    _run(folder, 1, _finish, resumable=True)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, 2, _interrupted, resumable=True)
    assert _run(folder, 1, _finish, resumable=True)[1] == ["stage ..."]


def test_a_damaged_record_means_that_the_stage_is_not_done(tmp_path):
    folder = tmp_path / "stage"
    _run(folder, 1, _finish)
    (folder / "stage.json").write_text("{")
    assert _run(folder, 1, _finish)[1] == ["stage ..."]


def test_the_work_of_others_is_watched_and_never_goes_back(monkeypatch):
    monkeypatch.setattr(stages, "LOOK_S", 0.001)
    counts, said, seen = iter([1, 5, 3]), [], threading.Event()

    def count():
        value = next(counts, None)
        if value is None:
            seen.set()
        return value or 0

    with watched(count, 7, lambda done, total: said.append((done, total))):
        assert seen.wait(20)
    assert said[:3] == [(1, 7), (5, 7), (5, 7)]
    assert said[-1] == (7, 7)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


def test_what_failed_is_not_said_to_be_done():
    said = []

    def say(done, total):
        said.append((done, total))

    with pytest.raises(ValueError, match="broken"), watched(lambda: 0, 7, say):
        raise ValueError("broken")
    assert (7, 7) not in said
    with watched(lambda: 0, 7, None):
        pass
