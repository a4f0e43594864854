"""Ranking all users over all items: ours against the plain formulation.

python -m benchmarks.bench_eval [--quick]

Ours encodes the catalogue once, the plain formulation once per batch; so seconds are given for all
users, from those of one batch. Working memory is what the peak is above the model and its features.

Operations of the floor: twice the multiplications of the matrix products from real positions to
user vectors, of encoding every item once, and of the scores. Bytes of the floor: every weight once
per batch, every feature once, every item vector once per batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_train import forward_operations
from benchmarks.machine import (
    MIB,
    MemoryMeter,
    answer,
    describe_machine,
    measure_peaks,
    print_table,
    read_arguments,
    repeat,
    seconds,
)
from benchmarks.plain_model import PlainModel
from benchmarks.workload import (
    CATALOGUES,
    OFFICE_USERS,
    Size,
    add_sizes,
    build_catalogue,
    chosen_sizes,
    draw_batch,
)
from mmm4rec.metrics import catalogue_rank
from mmm4rec.model import MMM4Rec


def build(job: dict[str, Any]) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    """Return what is done once for all users, and what is done with its result for each batch."""
    size, device = Size(**job["size"]), job["device"]
    model = MMM4Rec(size.config, build_catalogue(size.num_items)).eval()
    batch = draw_batch(size).to(device)
    if job["side"] == "plain":
        plain = PlainModel.like(model, size.config).to(device).eval()
        return lambda: batch.targets_B, lambda targets_B: plain.ranks(
            plain(batch.items_BL, batch.timestamps_BL, batch.lengths_B), targets_B
        )
    model.to(device)
    return model.item_matrix, lambda items_ID: catalogue_rank(
        model(batch), items_ID, batch.targets_B, padding_candidate=True
    )


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time one formulation."""
    torch.manual_seed(0)
    device = job["device"]
    once, each = build(job)
    meter = MemoryMeter(device)
    prepared = once()
    each(prepared)
    found: dict[str, Any] = {"once": seconds(once, device)}
    found["each"] = [seconds(lambda: each(prepared), device) for _ in range(job["steps"])]
    return found | {"peak": meter.peak(), "working": meter.working()}


def compare(size: Size, arguments: argparse.Namespace) -> None:
    """Measure both formulations and print their table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = {"size": vars(size), "device": device, "steps": arguments.steps}
    jobs = [shared | {"side": side} for side in ("plain", "ours")]
    results = repeat("benchmarks.bench_eval", jobs, arguments.repetitions)
    plain, ours = results
    assert plain is not None
    assert ours is not None
    peaks = measure_peaks(device)
    torch.manual_seed(0)
    num_batches = -(-OFFICE_USERS // size.batch_size)
    model, adapters, scores = forward_operations(size, draw_batch(size).lengths_B)
    width = size.config.d_model
    num_bytes = 4 * num_batches * ((size.num_items + 1) * width + 2_000_000)
    floors = peaks.floors((model + scores) * num_batches + adapters, num_bytes)
    print(f"\n{describe_machine(device, peaks)}")
    rows = []
    for name, result in (("plain", plain), ("ours", ours)):
        total, best = (
            result[f"once{kind}"] + num_batches * result[f"each{kind}"] for kind in ("", "_best")
        )
        plain_total = plain["once"] + num_batches * plain["each"]
        rows.append(
            [
                name,
                f"{total:.1f}",
                f"{best:.1f}",
                f"{OFFICE_USERS / total:,.0f}",
                f"{result['peak'] / MIB:,.0f}",
                f"{result['working'] / MIB:,.0f}",
                *(f"{floor / best:.0%}" for floor in floors),
                f"{plain_total / total:.1f}",
                f"{plain['working'] / result['working']:.1f}",
            ]
        )
    header = ["", "s", "best", "users/s", "peak MiB", "working MiB", "of ops", "of bytes"]
    print_table(
        f"{OFFICE_USERS:,} users, {size.num_items:,} items, batch {size.batch_size}, "
        f"{size.lengths} rows",
        [*header, "ratio", "of working"],
        rows,
    )


def main() -> None:
    arguments = read_arguments(__doc__, add_sizes)
    if arguments.job:
        answer(measure, arguments.job)
        return
    for size in chosen_sizes(arguments, [CATALOGUES["Office"]]):
        compare(size, arguments)


if __name__ == "__main__":
    main()
