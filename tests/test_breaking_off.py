"""A full disk and Ctrl-C in every stage: nothing is lost, and the next run carries on."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmm4rec.lit_module import LitRecommender
from mmm4rec.run_folder import RESULTS
from pipeline import images

DOMAIN = "MiniOffice"
SMALL_SHARDS = ("--set", "features.shard_size=8")

# Where a write goes wrong, half of it done: the stage, and the file. One image is enough.
WRITES = {
    "tables": r"/\.tables.*users\.parquet",
    "images": r"/images/.*\.jpg",
    "outcomes of images": r"/images/.*outcomes.*\.parquet",
    "text features": r"/text/.*/encoding/.*\.parquet",
    "image features": r"/image/.*/encoding/.*\.parquet",
    "items": r"/prepared/.*items\.parquet",
    "manifest": r"/prepared/.*manifest\.json",
}


def _full_disk(path):
    return OSError(errno.ENOSPC, "No space left on device", str(path))


def _interrupt(path):
    return KeyboardInterrupt()


FULL = "the disk is full.*; nothing half-written was kept. Next: free some space"
INTERRUPTED = "interrupted; the same command carries on from here"
FAULTS = {"full disk": (_full_disk, 1, FULL), "Ctrl-C": (_interrupt, 130, INTERRUPTED)}


@pytest.fixture
def break_write(monkeypatch):
    """Make a write whose path matches go wrong half-way: the first one, or the nth."""

    def arm(pattern, fault, nth=1):
        left = [fault] * nth

        def wrap(write, path_first):
            def half_written(first, second, *args, **kwargs):
                path = Path(first if path_first else second)
                error = left.pop()(path) if left and re.search(pattern, str(path)) else None
                if error is not None and not left:
                    with path.open("wb") as file:
                        file.write(b"half")
                    raise error
                return write(first, second, *args, **kwargs)

            return half_written

        for owner, name, path_first in (
            (pl.DataFrame, "write_parquet", False),
            (pq, "write_table", False),
            (Path, "write_bytes", True),
            (Path, "write_text", True),
        ):
            monkeypatch.setattr(owner, name, wrap(getattr(owner, name), path_first))
        return left

    return arm


@pytest.fixture(scope="module")
def in_shards(prepare, tmp_path_factory, read_tree):
    """What an undisturbed preparation in small shards writes."""
    folder = tmp_path_factory.mktemp("reference")
    assert prepare(folder, DOMAIN, *SMALL_SHARDS).exit_code == 0
    return read_tree(folder / "prepared")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", WRITES)
def test_prepare_breaks_off_and_carries_on(
    assert_fails,
    assert_nothing_half_written,
    prepare,
    in_shards,
    break_write,
    tmp_path,
    read_tree,
    stage,
    fault,
):
    error, code, message = FAULTS[fault]
    left = break_write(WRITES[stage], error)
    assert_fails(prepare(tmp_path, DOMAIN, *SMALL_SHARDS), code, message)
    assert left == []
    assert_nothing_half_written(tmp_path)
    assert not (tmp_path / "prepared" / DOMAIN).exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.parquet")}
    assert prepare(tmp_path, DOMAIN, *SMALL_SHARDS).exit_code == 0
    assert read_tree(tmp_path / "prepared") == in_shards
    kept = {path: path.stat().st_mtime_ns for path in before if "features" in str(path)}
    assert kept.items() <= before.items()
    assert len(kept) == {"image features": 5, "items": 10, "manifest": 10}.get(stage, 0)


def test_a_full_disk_that_only_the_text_tells_of(
    assert_fails, prepare, break_write, data_dir, tmp_path, read_tree
):
    """What polars raises is no OSError."""
    text = "parquet: underlying IO error: No space left on device (os error 28)"
    break_write(WRITES["tables"], lambda path: pl.exceptions.ComputeError(text))
    where = r"the disk is full while writing \S+/users\.parquet; "
    assert_fails(prepare(tmp_path), 1, where)
    assert prepare(tmp_path).exit_code == 0
    expected = read_tree(data_dir / "prepared" / DOMAIN)
    assert read_tree(tmp_path / "prepared" / DOMAIN) == expected


def test_images_that_came_are_not_asked_for_again(
    assert_fails, prepare, asked, monkeypatch, tmp_path
):

    collect, calls = images._collect, []

    def interrupt(fetcher, log):
        calls.append(fetcher)
        if len(calls) == 20:
            raise KeyboardInterrupt
        collect(fetcher, log)

    monkeypatch.setattr(images, "_collect", interrupt)
    options = ("--set", "images.connections=1")
    assert_fails(prepare(tmp_path, DOMAIN, *options), 130, INTERRUPTED)
    first = list(asked)
    asked.clear()
    assert prepare(tmp_path, DOMAIN, *options).exit_code == 0
    assert len(first) >= 15
    assert not set(first) & set(asked)


def test_a_prepared_folder_stays_whole_while_a_new_one_fails(
    assert_fails, assert_nothing_half_written, prepare, break_write, tmp_path, read_tree
):
    assert prepare(tmp_path).exit_code == 0
    before = read_tree(tmp_path / "prepared")
    break_write(WRITES["manifest"], _full_disk)
    assert_fails(prepare(tmp_path, DOMAIN, "--set", "prepare.k_core=4"), 1, "disk is full")
    assert read_tree(tmp_path / "prepared") == before
    assert_nothing_half_written(tmp_path)
    assert prepare(tmp_path).exit_code == 0
    assert read_tree(tmp_path / "prepared") == before


# What is called, and at which call Ctrl-C comes. Fine-tuning makes 6 steps an epoch here.
CALLS = {
    "the first epoch": ("training_step", 3),
    "the second epoch": ("training_step", 9),
    "validation": ("validation_step", 2),
}
# Which write meets a full disk, and how often it went well before.
RUN_WRITES = {
    "settings": (r"config\.yaml", 0),
    "data": (r"data\.lock\.json", 0),
    "the first epoch": (r"last\.ckpt", 0),
    "the second epoch": (r"last\.ckpt", 1),
    "the best epoch": (r"best\.ckpt", 0),
    "results": (r"results\.json", 0),
}


def _interrupt_call(monkeypatch, name, nth):
    call, calls = getattr(LitRecommender, name), []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return call(*args)

    monkeypatch.setattr(LitRecommender, name, interrupted)


def _comparable(results):
    timed = {"folder", "seconds_total", "seconds_to_best", "seconds_per_epoch", "convergence"}
    return {key: value for key, value in results.items() if key not in timed}


@pytest.fixture
def assert_carries_on(
    assert_fails, assert_nothing_half_written, train, data_dir, trained, tmp_path
):
    """Run a command that breaks off; the next run must end as the undisturbed one did."""

    def check(verb, code, message):
        broken = train(verb, data_dir, tmp_path, "--domain", DOMAIN)
        assert_fails(broken, code, message)
        assert list(tmp_path.rglob(RESULTS)) == []
        assert_nothing_half_written(tmp_path)
        again = train(verb, data_dir, tmp_path, "--domain", DOMAIN, "--json")
        assert again.exit_code == 0
        assert _comparable(json.loads(again.stdout)) == _comparable(trained[verb])
        assert len(list(tmp_path.glob("*/*/*"))) == 1

    return check


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
@pytest.mark.parametrize("when", CALLS)
def test_training_is_interrupted_and_carries_on(assert_carries_on, monkeypatch, verb, when):
    _interrupt_call(monkeypatch, *CALLS[when])
    assert_carries_on(verb, 130, INTERRUPTED)


def test_the_test_of_a_run_is_interrupted_and_carries_on(assert_carries_on, monkeypatch):
    _interrupt_call(monkeypatch, "test_step", 1)
    assert_carries_on("finetune", 130, INTERRUPTED)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
@pytest.mark.parametrize("what", RUN_WRITES)
def test_training_meets_a_full_disk_and_carries_on(assert_carries_on, break_write, verb, what):
    pattern, before = RUN_WRITES[what]
    break_write(pattern, _full_disk, before + 1)
    assert_carries_on(verb, 1, FULL)


def test_the_ranks_meet_a_full_disk(assert_carries_on, break_write):
    break_write(r"ranks\.parquet", _full_disk)
    assert_carries_on("finetune", 1, FULL)


def test_the_model_file_meets_a_full_disk(assert_carries_on, monkeypatch):
    calls = []

    def fail_once(weights, path, **options):
        calls.append(path)
        if len(calls) > 1:
            return save_file(weights, path, **options)
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    monkeypatch.setattr("mmm4rec.checkpoint.save_file", fail_once)
    assert_carries_on("finetune", 1, FULL)


def test_an_interrupted_evaluation_is_done_again(
    assert_fails, invoke, data_dir, trained, monkeypatch, tmp_path
):
    _interrupt_call(monkeypatch, "test_step", 1)
    model = ("--ckpt", trained["finetune"]["folder"], "--domain", DOMAIN)
    arguments = ("evaluate", *model, "--data-dir", data_dir, "--runs-dir", tmp_path, "--json")
    assert_fails(invoke(*arguments), 130, INTERRUPTED)
    assert list(tmp_path.rglob(RESULTS)) == []
    assert json.loads(invoke(*arguments).stdout)["test"] == trained["finetune"]["test"]


# A file system of $1 kilobytes at $2: the command fails there, then once more with room enough.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 77
disk=$2; shift 2
"$@" && exit 78
test -z "$(find "$disk" -name '*.tmp')" || exit 79
mount -o remount,size=64m "$disk" && "$@" && cp -r "$disk/." "$KEPT"
"""


@pytest.fixture
def on_a_small_disk(tmp_path):
    """Run a command line on a file system that is too small, then on one that is not."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: a file system of one's own needs it")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()

    def run(kilobytes, *arguments):
        shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK]
        command = [sys.executable, "-m", "mmm4rec", *arguments]
        done = subprocess.run(
            [*shell, "sh", str(kilobytes), disk, *command],
            env=os.environ | {"KEPT": str(kept), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no file system of one's own here: {done.stderr.strip()}")
        assert (done.returncode, len(done.stderr.splitlines())) == (0, 1), done.stderr
        assert re.match(f"error: {FULL}", done.stderr)
        return kept

    return disk, run


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [12, 32, 100, 160])
def test_prepare_on_a_disk_that_is_full(on_a_small_disk, world, data_dir, read_tree, kilobytes):
    disk, run = on_a_small_disk
    source = ("--domain", DOMAIN, "--source", world.source(DOMAIN), "--config", "demo")
    kept = run(kilobytes, "prepare", *source, "--data-dir", disk)
    expected = read_tree(data_dir / "prepared" / DOMAIN)
    assert read_tree(kept / "prepared" / DOMAIN) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 100, 500])
def test_training_on_a_disk_that_is_full(on_a_small_disk, trained, kilobytes):
    disk, run = on_a_small_disk
    config = Path(trained["finetune"]["folder"]) / "config.yaml"
    kept = run(kilobytes, "finetune", "--domain", DOMAIN, "--config", config, "--runs-dir", disk)
    (results,) = (json.loads(path.read_text()) for path in kept.rglob(RESULTS))
    assert results["test"] == trained["finetune"]["test"]
