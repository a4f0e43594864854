"""A run that is interrupted anywhere and carried on ends as the one that was not, bit for bit."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim import NAdam

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.callbacks.history import EpochHistory
from mmm4rec.callbacks.resuming import ResumePoint
from mmm4rec.checkpoint import MODEL_FILE
from mmm4rec.lit_module import LitRecommender
from mmm4rec.runner import RANKS, fit
from mmm4rec.settings import load_config
from pipeline.datamodule import SequenceDataModule
from pipeline.sequences import FlatSequences

ROOT = Path(__file__).parents[2]
TINY = (
    "model={d_model: 16, d_feed_forward: 16, d_state: 4, head_dim: 8, num_groups: 2, max_len: 6, "
    "dropout: 0.2, item_dropout: 0.2}",
    "trainer={accelerator: cpu, devices: 1, max_epochs: 2, accumulate_grad_batches: 1, "
    "checkpoint_minutes: 0}",
    "optimizer.lr=0.01",
    "data={batch_size: 22, eval_batch_size: 20}",
    "evaluation.bootstrap_samples=100",
    "watch.alignment=true",
)
NUM_ITEMS, NUM_USERS, LENGTH = 30, 30, 6
BATCHES, EPOCHS = 5, 2  # 90 samples, the last batch of two


def build_data(config):
    generator = torch.Generator().manual_seed(1)
    start_U = torch.randint(0, NUM_ITEMS, (NUM_USERS, 1), generator=generator)
    items_UL = (start_U + torch.arange(LENGTH)) % NUM_ITEMS + 1
    sequences = FlatSequences(
        items_UL.flatten(),
        1_400_000_000 + 86_400 * torch.arange(NUM_USERS * LENGTH),
        torch.arange(0, NUM_USERS * LENGTH + 1, LENGTH),
    )
    features = {
        name: ModalityFeatures(
            torch.randn(NUM_ITEMS + 1, 8, generator=generator).half(),
            torch.arange(NUM_ITEMS + 1) % every > 0,
        )
        for name, every in (("text", NUM_ITEMS + 1), ("image", 4))
    }
    data = SequenceDataModule.from_config(config, ["Tiny"], "finetune")
    data._loaded = (sequences, ItemCatalogue(features, "tiny"))
    data.prepare_data = lambda: None
    data.lock = lambda: {"Tiny": {}}
    return data


def train(runs_dir, *overrides, echo=lambda line: None):
    config = load_config(None, [*TINY, *overrides])
    return fit(config, build_data(config), stage="finetune", runs_dir=runs_dir, echo=echo)


def _rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [_untimed(row) for row in csv.DictReader(file)]


TIMED = ("seconds", "samples_per_second", "peak_memory_mib")


def _untimed(value):
    """Leave out what a clock or the operating system says, at any depth."""
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(t in str(k) for t in TIMED)}
    return [_untimed(part) for part in value] if isinstance(value, list | tuple) else value


def _bits(value):
    """Make tensors comparable by their bytes, at any depth."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: _bits(part) for key, part in value.items()}
    return [_bits(part) for part in value] if isinstance(value, list | tuple) else value


def _final_state(folder, name):
    state = torch.load(folder / "checkpoints" / name, weights_only=True)
    callbacks = {key.partition("{")[0]: part for key, part in state["callbacks"].items()}
    keeper = callbacks["ModelCheckpoint"]
    for key in ("dirpath", "best_model_path", "last_model_path", "kth_best_model_path"):
        keeper[key] = Path(keeper[key]).name  # the folders of two runs differ
    keeper["best_k_models"] = list(keeper["best_k_models"].values())
    del callbacks["Throughput"]
    fit_loop = state["loops"]["fit_loop"]
    return _bits(
        _untimed(
            {
                "weights": state["state_dict"],
                "optimizer": state["optimizer_states"],
                "callbacks": callbacks,
                "place": [state["epoch"], state["global_step"], state["train_loss"]],
                "sampler": fit_loop["state_dict"]["combined_loader"],
                "progress": [
                    fit_loop[name]["current"]
                    for name in ("epoch_progress", "epoch_loop.batch_progress")
                ],
            }
        )
    )


def assert_equal_runs(run, whole):
    assert (run / MODEL_FILE).read_bytes() == (whole / MODEL_FILE).read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = _final_state(run, name), _final_state(whole, name)
        for part, value in expected.items():
            assert found[part] == value, (name, part)
    assert _rows(run) == _rows(whole)
    assert (run / RANKS).read_bytes() == (whole / RANKS).read_bytes()
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, whole)]
    assert _untimed(results[0]) == _untimed(results[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupts, by its settings."""
    runs = {}

    def get(*overrides):
        if overrides not in runs:
            runs[overrides] = train(tmp_path_factory.mktemp("whole"), *overrides).folder
        return runs[overrides]

    return get


class PlantedError(Exception):
    pass


def _call_at(monkeypatch, owner, name, nth, act, *, after=False):
    """Do something before or after the nth call of a method; return the calls."""
    method, calls = getattr(owner, name), []

    def acting(*args, **kwargs):
        calls.append(name)
        if len(calls) == nth and not after:
            act()
        result = method(*args, **kwargs)
        if len(calls) == nth and after:
            act()
        return result

    monkeypatch.setattr(owner, name, acting)
    return calls


def _fail():
    raise PlantedError


def _progress(runs_dir):
    """Return the epoch and the batch that the resume point stands at."""
    (path,) = runs_dir.rglob("last.ckpt")
    loops = torch.load(path, weights_only=True)["loops"]
    (sampler,) = loops["fit_loop"]["state_dict"]["combined_loader"]
    return sampler["epoch"], sampler["batch"]


@pytest.mark.parametrize(
    "settings",
    [
        ("trainer.accumulate_grad_batches=1",),
        ("trainer.accumulate_grad_batches=2",),
        ("trainer.accumulate_grad_batches=3", "optimizer.accumulation=sum"),
        ("trainer.precision=64-true", "trainer.accumulate_grad_batches=2"),
        ("trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_run_that_fails_again_at_every_step(whole, monkeypatch, tmp_path, settings):
    """Each attempt takes one optimizer step and fails in the next."""
    accumulated = load_config(None, [*TINY, *settings]).trainer.accumulate_grad_batches
    for attempt in range(EPOCHS * -(-BATCHES // accumulated) - 1):
        with monkeypatch.context() as patch:
            calls = _call_at(patch, LitRecommender, "optimizer_step", 2, _fail)
            with pytest.raises(PlantedError):
                train(tmp_path, *settings)
        assert len(calls) == 2, attempt
    assert_equal_runs(train(tmp_path, *settings).folder, whole(*settings))


# Where a run fails: the call, which one, and whether its work is done before.
FAULTS = {
    "before the first step": (LitRecommender, "training_step", 1, False),
    "in the middle of a group": (LitRecommender, "training_step", 4, False),
    "between the weights and their checkpoint": (NAdam, "step", 2, True),
    "in the last, shorter group": (LitRecommender, "training_step", 10, True),
    "in a validation": (LitRecommender, "validation_step", 2, False),
    "in the last validation": (LitRecommender, "validation_step", 4, True),
    "before the epoch is noted": (EpochHistory, "on_train_epoch_end", 1, False),
    "when the epoch is noted": (EpochHistory, "on_train_epoch_end", 2, True),
    "between the best checkpoint and the last": (ResumePoint, "on_train_epoch_end", 1, False),
    "after the last checkpoint": (ResumePoint, "on_train_epoch_end", 2, True),
    "in the test": (LitRecommender, "test_step", 2, False),
    "after the test": (LitRecommender, "on_test_epoch_end", 1, True),
}
BY_TWO = "trainer.accumulate_grad_batches=2"


@pytest.mark.parametrize("where", FAULTS)
def test_a_run_that_fails_once(whole, monkeypatch, tmp_path, where):
    owner, name, nth, after = FAULTS[where]
    with monkeypatch.context() as patch:
        _call_at(patch, owner, name, nth, _fail, after=after)
        with pytest.raises(PlantedError):
            train(tmp_path, BY_TWO)
    assert_equal_runs(train(tmp_path, BY_TWO).folder, whole(BY_TWO))


def test_points_inside_an_epoch_change_nothing_and_come_when_it_is_time(
    whole, monkeypatch, tmp_path
):
    rare = "trainer.checkpoint_minutes=5"
    with monkeypatch.context() as patch:
        _call_at(patch, LitRecommender, "training_step", 9, _fail)
        with pytest.raises(PlantedError):
            train(tmp_path, rare)
    assert _progress(tmp_path) == (0, BATCHES)
    run, expected = train(tmp_path, rare).folder, whole("trainer.accumulate_grad_batches=1")
    for name in ("last.ckpt", "best.ckpt"):
        assert _final_state(run, name) == _final_state(expected, name)
    with monkeypatch.context() as patch:
        patch.setattr("mmm4rec.callbacks.resuming.time", SlowTime())
        _call_at(patch, LitRecommender, "training_step", 5, _fail)
        with pytest.raises(PlantedError):
            train(tmp_path / "slow", rare)
    assert _progress(tmp_path / "slow") == (0, 3)  # 100 seconds a look: the third is at 300


class SlowTime:
    def __init__(self):
        self.now = 0

    def monotonic(self):
        self.now += 100
        return self.now


def _press_ctrl_c(times=1):
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)  # in this very thread, at once


@pytest.fixture
def interrupted_train(monkeypatch, tmp_path):
    """Train with Ctrl-C during the nth call of a step; return what was said, and the handlers."""

    def run(name, nth, times=1):
        lines = []
        before = signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            _call_at(patch, LitRecommender, name, nth, lambda: _press_ctrl_c(times))
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, BY_TWO, RARE, echo=lines.append)
        assert signal.getsignal(signal.SIGINT) is before
        return [line for line in lines if line.startswith("Ctrl-C")]

    return run


RARE = "trainer.checkpoint_minutes=5"
ANSWER = ["Ctrl-C: stopping at the next checkpoint; once more: at once"]


@pytest.mark.parametrize(
    ("name", "nth", "progress"),
    [
        ("training_step", 1, (0, 2)),
        ("training_step", 3, (0, 4)),
        ("training_step", 5, (0, 5)),
        ("validation_step", 1, (0, 5)),
        ("training_step", 7, (1, 2)),
    ],
)
def test_ctrl_c_waits_for_a_checkpoint(whole, interrupted_train, tmp_path, name, nth, progress):
    assert interrupted_train(name, nth) == ANSWER
    assert _progress(tmp_path) == progress
    assert_equal_runs(train(tmp_path, BY_TWO, RARE).folder, whole(BY_TWO, RARE))


def test_ctrl_c_twice_waits_for_nothing(whole, interrupted_train, tmp_path):
    assert interrupted_train("training_step", 8, times=2) == []
    assert _progress(tmp_path) == (0, BATCHES)
    assert_equal_runs(train(tmp_path, BY_TWO, RARE).folder, whole(BY_TWO, RARE))


def test_ctrl_c_in_the_test_waits_for_nothing(whole, interrupted_train, tmp_path):
    assert interrupted_train("test_step", 1) == []
    assert_equal_runs(train(tmp_path, BY_TWO, RARE).folder, whole(BY_TWO, RARE))


def test_a_run_that_is_told_to_end_leaves_a_checkpoint(whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        end = lambda: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        _call_at(patch, LitRecommender, "training_step", 4, end)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, BY_TWO, RARE)
    assert _progress(tmp_path) == (0, 4)
    assert_equal_runs(train(tmp_path, BY_TWO, RARE).folder, whole(BY_TWO, RARE))


def _start(runs_dir, *overrides, launcher=()):
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, runs_dir, *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill_after(process, runs_dir, saves):
    """Kill a run, and all its processes, once it has written so many resume points."""
    seen = set()
    while process.poll() is None and len(seen) < saves:
        seen |= {path.stat().st_mtime_ns for path in runs_dir.rglob("last.ckpt")}
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_at_random_moments(whole, tmp_path, seed):
    longer = ("trainer.max_epochs=6", BY_TWO)
    drawn = random.Random(seed)
    for _ in range(3):
        _kill_after(_start(tmp_path, *longer), tmp_path, drawn.randint(1, 6))
    _finish(_start(tmp_path, *longer))
    (run,) = (tmp_path / "finetune" / "Tiny").iterdir()
    assert_equal_runs(run, whole(*longer))


@pytest.mark.slow
def test_two_processes_that_are_killed(tmp_path):
    two = ("trainer.devices=2", "trainer.max_epochs=3", BY_TWO)
    _kill_after(_start(tmp_path / "cut", *two), tmp_path / "cut", 3)
    for name in ("cut", "whole"):
        _finish(_start(tmp_path / name, *two))
    run, whole = (next((tmp_path / name / "finetune/Tiny").iterdir()) for name in ("cut", "whole"))
    assert (run / MODEL_FILE).read_bytes() == (whole / MODEL_FILE).read_bytes()
    assert (run / RANKS).read_bytes() == (whole / RANKS).read_bytes()
    for found, expected in zip(_rows(run), _rows(whole), strict=True):
        # The sums of the loss of an interrupted epoch meet in another order.
        loss = float(expected.pop("train/loss"))
        assert float(found.pop("train/loss")) == pytest.approx(loss, rel=1e-14)
        assert found == expected


@pytest.mark.slow
def test_processes_that_all_start_at_once_make_one_run(tmp_path):
    two = ("trainer.devices=2", "trainer.max_epochs=1")
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    _finish(_start(tmp_path / "together", *two, launcher=together))
    _finish(_start(tmp_path / "one after the other", *two))
    models = [path.read_bytes() for path in tmp_path.rglob(MODEL_FILE.name)]
    assert len(list(tmp_path.glob("*/finetune/Tiny/*"))) == len(models) == 2
    assert models[0] == models[1]


if __name__ == "__main__":
    train(Path(sys.argv[1]), *sys.argv[2:], echo=print)
