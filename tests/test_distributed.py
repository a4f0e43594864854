"""Several processes give the results of one."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipeline.synthetic import MINIATURE, WorldSpec, build_world, serve


def _mmm4rec(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "mmm4rec", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_one_run_and_rank_as_one_does(tmp_path):
    world = build_world(tmp_path / "world", seed=0, spec=WorldSpec((), MINIATURE.downstream[1:]))
    domain = ("--domain", "MiniArts", "--data-dir", tmp_path / "data")
    with serve(world):
        preset = ("--config", "demo", "--no-images")
        _mmm4rec("prepare", *domain, "--source", world.source("MiniArts"), *preset, cwd=tmp_path)
    settings = ("--config", "demo-finetune", "--set", "trainer.max_epochs=2")
    two = ("--set", "trainer.devices=2")
    trained = json.loads(_mmm4rec("finetune", *domain, *settings, *two, "--json", cwd=tmp_path))
    assert len(list((tmp_path / "runs" / "finetune" / "MiniArts").iterdir())) == 1
    results, ranks = [], []
    for devices in (("--set", "trainer.devices=1"), two):
        printed = _mmm4rec(
            "evaluate", *domain, "--ckpt", trained["folder"], *devices, "--json", cwd=tmp_path
        )
        results.append(json.loads(printed))
        ranks.append(pq.read_table(f"{tmp_path / results[-1]['folder']}/ranks.parquet").to_pydict())
    assert results[0]["test"] == results[1]["test"] == trained["test"]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]["user_id"]) == len(set(ranks[0]["user_id"])) == trained["protocol"]["users"]
