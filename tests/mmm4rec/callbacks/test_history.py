import csv
from types import SimpleNamespace

import pytest
import torch

from mmm4rec.callbacks import history
from mmm4rec.callbacks.history import EpochClock, EpochHistory, reach, summarise_epochs


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(history.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def _trainer(epoch, step, **metrics):
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        callback_metrics=values, current_epoch=epoch, global_step=step, is_global_zero=True
    )


def _read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_row_per_epoch_with_all_that_was_measured(clock, tmp_path):
    lines = []
    kept = EpochHistory(tmp_path / "metrics.csv", "val/x", lines.append)
    for epoch, value in enumerate((0.25, 0.5, 0.375)):
        kept.on_train_epoch_start(None, None)
        clock.now += 2.5
        metrics = {"watch/w": 7.0, "val/x": value, "train/loss": 3.0, "other": 1.0}
        kept.on_train_epoch_end(_trainer(epoch, 5 * epoch + 5, **metrics), None)
    rows = _read(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["epoch", "step", "seconds", "train/loss", "val/x", "watch/w"]
    assert [list(row.values()) for row in rows] == [
        ["1", "5", "2.5", "3.0", "0.25", "7.0"],
        ["2", "10", "2.5", "3.0", "0.5", "7.0"],
        ["3", "15", "2.5", "3.0", "0.375", "7.0"],
    ]
    assert kept.best == kept.rows[1]
    assert lines[2] == "epoch 3  loss 3.0000  val/x 0.3750  (best 0.5000 at 2)  2.5 s"


def test_what_is_measured_in_some_epochs_only_has_a_column(tmp_path):
    kept = EpochHistory(tmp_path / "metrics.csv", "val/x", None)
    kept.on_train_epoch_end(_trainer(0, 1, **{"val/x": 0.5}), None)
    kept.on_train_epoch_end(_trainer(1, 2, **{"val/x": 0.5, "watch/w": 1.0}), None)
    assert [row["watch/w"] for row in _read(tmp_path / "metrics.csv")] == ["", "1.0"]


def test_the_seconds_between_an_interruption_and_its_continuation_do_not_count(clock, tmp_path):
    kept = EpochHistory(tmp_path / "metrics.csv", "val/x", None)
    kept.on_train_epoch_start(None, None)
    clock.now += 3
    state = kept.state_dict()
    assert state == {"rows": [], "seconds": 3.0}
    clock.now += 1000
    again = EpochHistory(tmp_path / "metrics.csv", "val/x", None)
    again.load_state_dict(state)
    clock.now += 10  # whatever is read before training goes on
    again.on_train_start(None, None)
    clock.now += 4
    again.on_train_epoch_end(_trainer(0, 1, **{"val/x": 0.5}), None)
    assert again.rows[0]["seconds"] == 7.0


def test_a_clock_starts_anew(clock):
    watch = EpochClock(before=5.0)
    clock.now += 1
    assert watch.seconds == 6.0
    watch.start()
    clock.now += 2
    assert watch.seconds == 2.0


ROWS = [
    {"epoch": n, "step": 3 * n, "seconds": 0.5 * n, "x": x}
    for n, x in enumerate((0.5, 0.89, 0.9, 0.95, 1.0, 0.2, 1.0), start=1)
]


@pytest.mark.parametrize(
    ("percent", "epoch", "seconds"), [(0, 1, 0.5), (89, 2, 1.5), (90, 3, 3.0), (99, 5, 7.5)]
)
def test_the_first_epoch_that_reaches_a_share_of_the_best(percent, epoch, seconds):
    assert reach(ROWS, "x", percent) == {"epoch": epoch, "step": 3 * epoch, "seconds": seconds}


def test_the_summary_of_a_history():
    assert summarise_epochs(ROWS, "x") == {
        "monitor": "x",
        "best_validation": 1.0,
        "best_epoch": 5,
        "best_step": 15,
        "epochs": 7,
        "convergence": {
            "90%": {"epoch": 3, "step": 9, "seconds": 3.0},
            "95%": {"epoch": 4, "step": 12, "seconds": 5.0},
            "99%": {"epoch": 5, "step": 15, "seconds": 7.5},
        },
        "seconds_to_best": 7.5,
        "seconds_per_epoch": 2.0,
    }
