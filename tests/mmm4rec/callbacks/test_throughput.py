import resource
from types import SimpleNamespace

import pytest
import torch

from mmm4rec.callbacks import history
from mmm4rec.callbacks.throughput import Throughput, peak_memory

CPU = torch.device("cpu")


@pytest.fixture
def module():
    logged = {}

    def log(name, value, **options):
        logged[name] = (value, options)

    return SimpleNamespace(device=CPU, log=log, logged=logged)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(history.time, "perf_counter", lambda: now[0])
    return now


def test_samples_per_second_of_training_alone(module, clock):
    trainer = SimpleNamespace(num_training_batches=3, world_size=2)
    watch = Throughput()
    watch.on_train_epoch_start(trainer, module)
    for index, size in enumerate((10, 10, 4)):
        clock[0] += 2.0
        watch.on_train_batch_end(trainer, module, None, range(size), index)
    clock[0] += 50.0  # validation
    watch.on_train_epoch_end(trainer, module)
    assert module.logged["watch/samples_per_second"] == (2 * 24 / 6.0, {"sync_dist": True})
    assert module.logged["watch/train_seconds"] == (6.0, {"sync_dist": True})
    peak, options = module.logged["watch/peak_memory_mib"]
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert options == {"reduce_fx": "max", "sync_dist": True}


def test_an_interrupted_epoch_is_counted_in_two_parts(module, clock):
    trainer = SimpleNamespace(num_training_batches=2, world_size=1)
    watch = Throughput()
    watch.on_train_epoch_start(trainer, module)
    clock[0] += 3.0
    watch.on_train_batch_end(trainer, module, None, range(8), 0)
    state = watch.state_dict()
    assert state == {"samples": 8, "seconds": 3.0}
    again = Throughput()
    again.load_state_dict(state)
    clock[0] += 100.0
    again.on_train_start(trainer, module)
    clock[0] += 1.0
    again.on_train_batch_end(trainer, module, None, range(8), 1)
    again.on_train_epoch_end(trainer, module)
    assert module.logged["watch/samples_per_second"][0] == 4.0


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_unit_of_the_peak_memory_is_that_of_the_system(monkeypatch, platform, unit):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=123))
    assert peak_memory(CPU) == 123 * unit


@pytest.mark.gpu
def test_the_peak_memory_of_a_gpu_is_that_of_the_epoch(module):
    module.device = torch.device("cuda")
    watch, trainer = Throughput(), SimpleNamespace(num_training_batches=1, world_size=1)
    block = torch.ones(2**28, dtype=torch.uint8, device="cuda")
    del block
    watch.on_train_epoch_start(trainer, module)
    small = torch.ones(2**20, dtype=torch.uint8, device="cuda")
    watch.on_train_batch_end(trainer, module, None, small, 0)
    watch.on_train_epoch_end(trainer, module)
    assert 1 <= module.logged["watch/peak_memory_mib"][0] < 2**8
