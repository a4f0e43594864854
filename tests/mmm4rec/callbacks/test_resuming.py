"""What a whole run does is in test_resume.py."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from mmm4rec.callbacks import resuming
from mmm4rec.callbacks.resuming import CtrlC, ResumePoint


class Trainer:
    """Notes what is saved; as if it were one of two processes."""

    num_training_batches = 6
    accumulate_grad_batches = 2
    received_sigterm = False

    def __init__(self, other_says=False):
        self.saved = []
        self.other_says = other_says
        self.strategy = SimpleNamespace(reduce_boolean_decision=self._any)

    def _any(self, decision, all):
        assert not all
        return decision or self.other_says

    def save_checkpoint(self, path):
        self.saved.append(path)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
    return now


def _batches(point, trainer, indices, seconds, clock):
    for index in indices:
        clock[0] += seconds
        point.on_train_batch_end(trainer, None, None, None, index)


def test_a_point_comes_when_it_is_time_and_a_step_was_taken(clock, tmp_path):
    trainer, point = Trainer(), ResumePoint(tmp_path / "last.ckpt", 1.0, print)
    saved_after = []
    for index in range(6):
        clock[0] += 25  # batches 3 and 5, counted from 1, do not end a step; 6 ends the epoch
        point.on_train_batch_end(trainer, None, None, None, index)
        saved_after.append(len(trainer.saved))
    assert saved_after == [0, 0, 0, 1, 1, 1]
    point.on_train_epoch_end(trainer, None)
    assert trainer.saved == [tmp_path / "last.ckpt"] * 2


def test_the_end_of_an_epoch_starts_the_minutes_anew(clock, tmp_path):
    trainer, point = Trainer(), ResumePoint(tmp_path, 1.0, print)
    _batches(point, trainer, range(1), 59, clock)
    point.on_train_epoch_end(trainer, None)
    _batches(point, trainer, range(2), 29, clock)
    assert len(trainer.saved) == 1


def test_all_processes_save_and_stop_where_one_is_to(clock, tmp_path):
    trainer, point = Trainer(other_says=True), ResumePoint(tmp_path, 1000.0, print)
    with pytest.raises(KeyboardInterrupt):
        _batches(point, trainer, range(6), 0, clock)
    assert len(trainer.saved) == 1


def test_ctrl_c_is_left_alone_outside_the_main_thread():
    before, ctrl_c = signal.getsignal(signal.SIGINT), CtrlC()
    thread = threading.Thread(target=ctrl_c.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    ctrl_c.give_back()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_news_once_and_interrupts_the_second_time():
    before, ctrl_c = signal.getsignal(signal.SIGINT), CtrlC()
    ctrl_c.listen()
    try:
        assert not ctrl_c.is_news()
        os.kill(os.getpid(), signal.SIGINT)
        assert ctrl_c.pressed
        assert [ctrl_c.is_news(), ctrl_c.is_news()] == [True, False]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        ctrl_c.give_back()
    assert signal.getsignal(signal.SIGINT) is before
