import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.bench_train import forward_operations, step_bytes
from benchmarks.machine import MIB, MemoryMeter, Peaks, print_table
from benchmarks.workload import Size, build_catalogue, draw_batch, draw_events_per_user
from mmm4rec.model import MMM4Rec
from mmm4rec.ops import pieces


def test_floors():
    assert Peaks(operations=100.0, bytes=10.0).floors(50, 20) == (0.5, 2.0)


def test_meter_sees_memory_that_was_given_back():
    meter = MemoryMeter("cpu")
    held = np.ones(64 * MIB // 8)
    del held
    assert 60 * MIB < meter.working() < 90 * MIB


def test_jobs_take_turns_and_their_medians_count(monkeypatch):
    answers = {"one": iter([3.0, 1.0, 8.0]), "two": iter([None])}
    turns = []

    def measure(module, job):
        turns.append(job["name"])
        value = next(answers[job["name"]])
        return None if value is None else {"s": value, "all": [value, value + 1]}

    monkeypatch.setattr(machine, "measure_apart", measure)
    one, two = machine.repeat("module", [{"name": "one"}, {"name": "two"}], 3)
    assert turns == ["one", "two", "one", "one"]
    assert one == {"s": 3.0, "s_best": 1.0, "all": 3.5, "all_best": 1.0}
    assert two is None


def test_a_job_that_asks_for_too_much_memory_is_told_apart(capsys):
    def fail(job):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(SystemExit, match="out of memory"):
        machine.answer(fail, "{}")
    machine.answer(lambda job: {"seconds": job["steps"]}, '{"steps": 2}')
    assert capsys.readouterr().out == '{"seconds": 2}\n'


def test_a_job_that_fails_otherwise_shows_why():
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks.bench_data .* failed:.*KeyError"):
        machine.measure_apart("benchmarks.bench_data", {})


def test_table(capsys):
    print_table("Title", ["", "s"], [["plain", 10], ["ours", 2]])
    assert capsys.readouterr().out == "\nTitle\n        s\nplain  10\n ours   2\n"


def test_counted_operations_are_those_that_torch_counts(monkeypatch):
    """Forward, without recomputation, all rows full so that no padding is read."""
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", 1 << 40)
    torch.manual_seed(0)
    size = Size(num_items=99, batch_size=8, d_model=64)
    model, batch = MMM4Rec(size.config, build_catalogue(99)).eval(), draw_batch(size)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        scores_BI = model.score(model(batch), model.item_matrix())
    assert scores_BI.shape == (8, 100)
    encoded_twice = 2 * 2 * len(batch.items_BL.unique()) * 768 * 64
    read, adapters, scores = forward_operations(size, batch.lengths_B)
    # The floor has the time path left out, and half of the pairs: those of the future.
    total = counter.get_total_flops() - encoded_twice
    assert read + adapters + scores == pytest.approx(total, rel=0.08)
    assert read + adapters + scores < total


def test_counted_bytes_hold_weights_features_and_what_is_kept():
    size = Size(num_items=99, batch_size=8, d_model=64)
    model, batch = MMM4Rec(size.config, build_catalogue(99)), draw_batch(size)
    fixed = 3 * sum(p.nbytes for p in model.parameters())
    fixed += 2 * sum(b.nbytes for b in model.buffers())
    counted = step_bytes(model, lambda: model(batch))
    assert counted > fixed + 2 * 8 * 20 * 64 * 4
    assert step_bytes(model, lambda: None) == fixed


def test_users_have_five_events_and_about_eight_on_average():
    torch.manual_seed(0)
    events_U = draw_events_per_user(100_000)
    assert events_U.min() == 5
    assert events_U.double().mean().item() == pytest.approx(7.84, rel=0.03)
