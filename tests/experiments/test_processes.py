import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from experiments.processes import JobProcesses, place_environments, visible_gpus


def test_a_job_gets_its_text_and_its_lines_and_errors_come_back():
    lines = []
    with JobProcesses("json.tool", [{}]) as processes:
        assert processes.run('{"a": [1]}', lines.append) == (0, "")
        assert "".join(line.strip() for line in lines) == '{"a": [1]}'
        code, errors = processes.run("{", lines.append)
    assert code == 1
    assert "Expecting property name" in errors


def test_each_place_has_its_environment(tmp_path, monkeypatch):
    (tmp_path / "tell.py").write_text("import os; print(os.environ['PLACE'])")
    monkeypatch.syspath_prepend(tmp_path)
    lines = []
    places = [{"PLACE": "one"}, {"PLACE": "other"}]
    with ThreadPoolExecutor(2) as pool, JobProcesses("tell", places) as processes:
        for done in [pool.submit(processes.run, "", lines.append) for _ in range(2)]:
            assert done.result() == (0, "")
    assert sorted(lines) == ["one", "other"]


def test_what_ends_the_block_ends_the_processes(tmp_path, monkeypatch):
    (tmp_path / "sleepy.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(7) from None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines, processes = [], JobProcesses("sleepy", [{}])

    def run_until_interrupted(pool, jobs):
        with processes:
            jobs.append(pool.submit(processes.run, "", lines.append))
            while not lines:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        jobs = []
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupted(pool, jobs)
        assert jobs[0].result() == (7, "")
        assert pool.submit(processes.run, "", lines.append).result()[0] < 0
    assert lines == ["begun"]


def test_a_process_that_does_not_listen_is_ended_too(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.processes.GRACE_S", 0.1)
    (tmp_path / "deaf.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('begun', flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines, processes = [], JobProcesses("deaf", [{}])
    with ThreadPoolExecutor(1) as pool:
        with processes:
            job = pool.submit(processes.run, "", lines.append)
            while not lines:
                time.sleep(0.01)
        assert job.result() == (-9, "")


def test_processes_take_turns_with_the_gpus_and_share_the_cores(monkeypatch):
    gpus = place_environments(3, ["0", "5"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in gpus] == ["0", "5", "0"]
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert place_environments(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert place_environments(20, [])[19] == {"OMP_NUM_THREADS": "1"}


def test_gpus_are_called_as_the_environment_calls_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert visible_gpus() == ["3", "GPU-5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == []
