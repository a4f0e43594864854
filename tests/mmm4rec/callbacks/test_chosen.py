import pytest

from mmm4rec.callbacks.chosen import choose_callbacks
from mmm4rec.callbacks.history import EpochHistory
from mmm4rec.config import TrainerConfig, WatchConfig

ALWAYS = ["EpochHistory", "PatientStopping", "ModelCheckpoint", "ResumePoint"]
SWITCHES = {
    "non_finite": "NonFiniteGuard",
    "throughput": "Throughput",
    "alignment": "Alignment",
    "dying_parameters": "Vitality",
}


def _names(folder, watch, progress=False):
    trainer = TrainerConfig()
    history = EpochHistory(folder / "metrics.csv", trainer.monitor, None)
    chosen = choose_callbacks(trainer, watch, history, folder, print, progress=progress)
    return [type(callback).__name__ for callback in chosen]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_adds_one_callback_before_those_that_write(tmp_path, switch):
    watch = WatchConfig(**{name: name == switch for name in SWITCHES})
    assert _names(tmp_path, watch) == [SWITCHES[switch], *ALWAYS]


def test_alignment_alone_is_off_by_default(tmp_path):
    assert _names(tmp_path, WatchConfig()) == ["NonFiniteGuard", "Throughput", "Vitality", *ALWAYS]


def test_a_terminal_gets_a_progress_bar(tmp_path):
    off = WatchConfig(**dict.fromkeys(SWITCHES, False))
    assert _names(tmp_path, off, progress=True) == [*ALWAYS, "RichProgressBar"]
