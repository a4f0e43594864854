"""Batches ready for training: ours against a dataset of materialised prefixes.

python -m benchmarks.bench_data [--quick]

Interactions of Office's size are made up; an epoch's order is drawn, and batches of 1,024 are taken
one after the other. Preparing is what happens once: writing out the prefixes, or finding the flat
positions of the targets. There are no floating-point operations; bytes of the floor are what a
batch is made of: every number read once and written once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sized
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from benchmarks.machine import (
    MIB,
    MemoryMeter,
    answer,
    describe_machine,
    measure_peaks,
    print_table,
    read_arguments,
    repeat,
)
from benchmarks.plain_data import PrefixDataset, materialise_prefixes
from benchmarks.workload import OFFICE_USERS, draw_events_per_user
from pipeline.sequences import BatchLoader, FlatSequences, training_targets

MAX_LEN = 20
BATCH_SIZE = 1024
HELD_OUT = 2  # events of each user that are no training targets


class Batches(Iterable[object], Sized, Protocol):
    """What both formulations offer."""


def draw_sequences(num_users: int) -> FlatSequences:
    """Return made-up interactions."""
    events_U = draw_events_per_user(num_users)
    offsets_U = torch.cat([torch.zeros(1, dtype=torch.int64), events_U.cumsum(0)])
    total = int(offsets_U[-1])
    return FlatSequences(
        torch.randint(1, 25_987, (total,)), torch.randint(10**9, 15 * 10**8, (total,)), offsets_U
    )


def prepare(side: str, sequences: FlatSequences) -> Batches:
    """Return the batches of an epoch in one formulation."""
    if side == "plain":
        events = list(zip(sequences.items_N.tolist(), sequences.timestamps_N.tolist(), strict=True))
        offsets = sequences.offsets_U.tolist()
        users = [events[first:end] for first, end in itertools.pairwise(offsets)]
        dataset = PrefixDataset(materialise_prefixes(users, HELD_OUT), MAX_LEN)
        return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
    targets_at = training_targets(sequences.offsets_U, torch.full((sequences.num_users,), HELD_OUT))
    return BatchLoader(
        sequences,
        targets_at,
        batch_size=BATCH_SIZE,
        max_len=MAX_LEN,
        target_time="leaked",
        shuffle_seed=0,
    )


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time one formulation."""
    torch.manual_seed(0)
    sequences = draw_sequences(job["users"]).to(job["device"])
    meter = MemoryMeter("cpu")
    began = time.perf_counter()
    batches = prepare(job["side"], sequences)
    prepared = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, job["batches"]))
    if job["device"] != "cpu":
        torch.cuda.synchronize()
    return {
        "prepare": prepared - began,
        "batch": (time.perf_counter() - prepared) / count,
        "memory": meter.working(),
    }


def main() -> None:
    arguments = read_arguments(__doc__)
    if arguments.job:
        answer(measure, arguments.job)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = {"users": 1_000 if arguments.quick else OFFICE_USERS, "batches": 100}
    jobs = [
        shared | {"side": "plain", "device": "cpu"},
        shared | {"side": "ours", "device": device},
    ]
    plain, ours = repeat("benchmarks.bench_data", jobs, arguments.repetitions)
    assert plain is not None
    assert ours is not None
    peaks = measure_peaks(device)
    print(describe_machine(device, peaks))
    _, floor = peaks.floors(0, 2 * 8 * BATCH_SIZE * (2 * MAX_LEN + 3))
    rows = [
        [
            name,
            f"{result['batch'] * 1000:.2f}",
            f"{result['batch_best'] * 1000:.2f}",
            f"{BATCH_SIZE / result['batch']:,.0f}",
            f"{result['prepare']:.2f}",
            f"{result['memory'] / MIB:,.0f}",
            f"{floor / result['batch_best']:.1%}",
            f"{plain['batch'] / result['batch']:.0f}",
        ]
        for name, result in (("plain", plain), ("ours", ours))
    ]
    header = ["", "ms/batch", "best", "samples/s", "prepare s", "working MiB", "of bytes", "ratio"]
    print_table(f"{shared['users']:,} users, batch {BATCH_SIZE}, length {MAX_LEN}", header, rows)


if __name__ == "__main__":
    main()
