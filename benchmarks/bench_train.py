"""A training step: ours against the plain formulation, over the full catalogue.

python -m benchmarks.bench_train [--quick]

On a machine that others use as well, compare busy seconds of one thread (OMP_NUM_THREADS=1).

A step is forward and backward of one batch, gradients added to those of the batch before, and an
eighth of an optimizer step, as in the default of eight batches per step.

Operations of the floor: twice the multiplications of every matrix product on the way from real
positions to the loss, three times (forward and both gradients), the adapters' twice (features
have no gradient); every item is encoded once; nothing for padding, for positions that the last
fusion does not read, for element-wise work.
Bytes of the floor: every weight read twice and its gradient written once, every feature read
twice, every tensor that our step keeps for its backward pass written once and read once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import (
    GIB,
    MIB,
    MemoryMeter,
    answer,
    available_memory,
    cpu_seconds,
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
    FEATURE_WIDTH,
    Size,
    add_sizes,
    build_catalogue,
    chosen_sizes,
    draw_batch,
)
from mmm4rec.batch import SequenceBatch
from mmm4rec.loss import catalogue_loss
from mmm4rec.model import MMM4Rec

ACCUMULATED = 8  # batches per optimizer step
_HEADER = (
    *("", "s/step", "best", "cpu s", "samples/s", "peak MiB", "of ops", "of bytes"),
    *("ratio", "of best", "of cpu"),
)
# Median, fastest and busy seconds: of the step, of the optimizer.
_TIMES = (
    ("seconds", "optimizer"),
    ("seconds_best", "optimizer_best"),
    ("cpu_best", "optimizer_best"),
)
SPARED_MEMORY = 6 * GIB  # left to everybody else by a formulation that would take all


def forward_operations(size: Size, lengths_B: Tensor) -> tuple[int, int, int]:
    """Return the operations of one forward pass: of reading histories, of adapters, of scores."""
    config = size.config
    D, E, H, K = config.d_model, config.d_inner, config.num_heads, config.d_conv
    S, F, M = config.num_groups * config.d_state, config.d_feed_forward, 2
    # Text: gate, x, B, C, step, output and feed-forward; image and the fusion's source: x, B, step.
    positions = int(lengths_B.sum())
    products = positions * D * ((2 * E + 2 * S + H) + E + 2 * F + 2 * (E + S + H))
    # Image: gate, output and query where the fusion's convolution looks, C where that of C does.
    products += int(lengths_B.clamp(max=K).sum()) * D * (2 * E + S)
    products += int(lengths_B.clamp(max=2 * K - 1).sum()) * D * S
    # The fusion's gate, output and feed-forward at the last position.
    products += len(lengths_B) * D * (2 * E + 2 * F)
    pairs = lengths_B * (lengths_B + 1) // 2 + lengths_B * (lengths_B.clamp(max=K) + 1)
    model = products + int(pairs.sum()) * H * (config.d_state + config.head_dim)
    adapters = M * (size.num_items + 1) * FEATURE_WIDTH * D
    return 2 * model, 2 * adapters, 2 * len(lengths_B) * (size.num_items + 1) * D


def step_operations(size: Size, lengths_B: Tensor) -> int:
    """Return the operations that a step cannot do without, see above."""
    model, adapters, scores = forward_operations(size, lengths_B)
    return 3 * (model + scores) + 2 * adapters


def step_bytes(model: MMM4Rec, step: Callable[[], object]) -> int:
    """Return the bytes that a step cannot do without, see above."""
    fixed = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in fixed}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    features = sum(buffer.nbytes for buffer in model.buffers())
    return 3 * weights + 2 * features + 2 * sum(kept.values())


def build_step(job: dict[str, Any], size: Size) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model and a function that computes the loss of one batch."""
    device = job["device"]
    config = size.config.model_copy(update={"ssd_backend": job.get("backend", "auto")})
    model = MMM4Rec(config, build_catalogue(size.num_items))
    batch = draw_batch(size).to(device)
    if job["side"] == "plain":
        plain = PlainModel.like(model, config).to(device).train()
        return plain, lambda: plain.loss(
            plain(batch.items_BL, batch.timestamps_BL, batch.lengths_B), batch.targets_B
        )
    model.to(device).train()
    read: Callable[[SequenceBatch], Tensor] = torch.compile(model) if job["compiled"] else model
    return model, lambda: catalogue_loss(
        read(batch), model.item_matrix(), batch.targets_B, padding_candidate=True
    )


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time one formulation."""
    torch.manual_seed(0)
    size, device = Size(**job["size"]), job["device"]
    model, loss = build_step(job, size)
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-4, weight_decay=0.005)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=job["bfloat16"]):
            value = loss()
        value.backward()

    found: dict[str, Any] = {}
    walls: list[float] = []
    meter = MemoryMeter(device)
    step()
    cpu = [cpu_seconds(lambda: walls.append(seconds(step, device))) for _ in range(job["steps"])]
    found["seconds"], found["cpu"] = walls, cpu
    found["memory"] = meter.peak()
    if job["optimizer"]:
        optimizer.step()
        found["optimizer"] = [seconds(optimizer.step, device)]
    if job.get("count_bytes") and isinstance(model, MMM4Rec):
        found["bytes"] = step_bytes(model, loss)
    return found


def compare(size: Size, arguments: argparse.Namespace) -> None:
    """Measure all formulations at one size and print their table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = size.num_items > 100_000
    shared = {
        "size": vars(size),
        "device": device,
        "steps": 1 if large else arguments.steps,
        "compiled": False,
        "bfloat16": False,
        "optimizer": not large,
    }
    jobs = {
        "plain": shared | {"side": "plain"},
        "ours": shared | {"side": "ours", "count_bytes": True},
    }
    if device == "cpu":
        jobs["plain"]["memory_limit"] = available_memory() - SPARED_MEMORY
    if arguments.compiled:
        jobs["ours, compiled"] = shared | {"side": "ours", "compiled": True}
    if device == "cuda":
        jobs["plain, bf16"] = jobs["plain"] | {"bfloat16": True}
        for backend in ("mamba", "quadratic"):
            jobs[f"ours, {backend}, bf16"] = jobs["ours"] | {"backend": backend, "bfloat16": True}
    results = repeat(
        "benchmarks.bench_train", list(jobs.values()), 1 if large else arguments.repetitions
    )
    peaks = measure_peaks(device)
    torch.manual_seed(0)
    lengths_B = draw_batch(size).lengths_B
    ours = results[1]
    assert ours is not None
    floors = peaks.floors(step_operations(size, lengths_B), ours["bytes"])
    print(f"\n{describe_machine(device, peaks)}")
    columns = [[_total(r, *names) for r in results] for names in _TIMES]
    rows = [
        _row(name, result, times, [column[0] for column in columns], floors, size)
        for name, result, *times in zip(jobs, results, *columns, strict=True)
    ]
    print_table(
        f"{size.num_items:,} items, batch {size.batch_size}, {size.lengths} rows "
        f"({lengths_B.float().mean():.1f} items on average)",
        _HEADER,
        rows,
    )


def _total(result: dict[str, Any] | None, step: str, optimizer: str) -> float | None:
    """Return the seconds of a step with its share of the optimizer's."""
    return None if result is None else result[step] + result.get(optimizer, 0) / ACCUMULATED


def _row(
    name: str,
    result: dict[str, Any] | None,
    times: list[float | None],
    plain: list[float | None],
    floors: tuple[float, float],
    size: Size,
) -> list[str]:
    total, best, cpu = times
    if result is None or total is None or best is None or cpu is None:
        return [name, "out of memory", *[""] * 9]
    operations, num_bytes = floors
    ratios = [f"{p / t:.2f}" if p else "" for p, t in zip(plain, (total, best, cpu), strict=True)]
    return [
        name,
        f"{total:.3f}",
        f"{best:.3f}",
        f"{cpu:.3f}",
        f"{size.batch_size / total:,.0f}",
        f"{result['memory'] / MIB:,.0f}",
        f"{operations / best:.0%}",
        f"{num_bytes / best:.0%}",
        *ratios,
    ]


def main() -> None:
    arguments = read_arguments(__doc__, add_sizes, _add_compiled)
    if arguments.job:
        answer(measure, arguments.job)
        return
    for size in chosen_sizes(arguments, CATALOGUES.values()):
        compare(size, arguments)


def _add_compiled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile")


if __name__ == "__main__":
    main()
