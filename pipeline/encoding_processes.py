r"""The feature stage in several processes, on one machine or on several.

Lightning starts the processes as a function of this one: the command is not run again. Each loads
the encoder and encodes every n-th chunk; the first puts the shards together when all are done. The
files are those that one process writes.

Several machines share a folder at the same path. Tables and images come first, by `mmm4rec prepare`
on one of them with `--text-encoder none --image-encoder none`; then, on each, with its own number
from 0:

    NODE_RANK=0 MASTER_ADDR=<first machine> MASTER_PORT=29500 mmm4rec prepare --domain Office \
        --set features.num_nodes=2 --set features.devices=8

Under SLURM, with one task per machine: NODE_RANK=$SLURM_NODEID.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from mmm4rec.config import FeaturesConfig
from mmm4rec.errors import ConfigError, DataError
from pipeline.encoders import EncoderSpec, load_encoder
from pipeline.encoding import encode_chunk
from pipeline.feature_plan import FeaturePlan, finish_features
from pipeline.images import Progress
from pipeline.model_files import resolve_device
from pipeline.stages import watched

PATIENCE = timedelta(days=1)  # of a process that waits for the slowest one


def is_first_machine(config: FeaturesConfig) -> bool:
    """Whether this machine puts the shards together; the others only help to encode."""
    return config.num_nodes == 1 or LightningEnvironment().node_rank() == 0


def encode_in_processes(
    plan: FeaturePlan, spec: EncoderSpec, config: FeaturesConfig, progress: Progress | None = None
) -> None:
    """Encode what a plan lacks in `devices` processes on each of `num_nodes` machines.

    Args:
        plan: the first machine's counts.
        spec: what each process loads.
        config: devices, num_nodes.
        progress: called with items done and all items; what has been encoded is seen on disk.

    Raises:
        ConfigError: there are fewer GPUs than `devices`.
        DataError: another machine's encoder is not the same.
    """
    kind = resolve_device(spec.device).type
    if kind == "cuda" and torch.cuda.device_count() < config.devices:
        raise ConfigError(
            f"features.devices is {config.devices}, PyTorch sees {torch.cuda.device_count()} GPUs. "
            f"Next: --set features.devices={torch.cuda.device_count()}"
        )
    fabric = Fabric(
        accelerator=kind,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=DDPStrategy(
            start_method="spawn",
            process_group_backend="gloo",  # it carries names of files and waits, nothing else
            timeout=PATIENCE,
        ),
        plugins=LightningEnvironment(),
    )
    known = plan.num_items - plan.num_new

    def count() -> int:
        return known + sum(len(chunk.inputs) for chunk in plan.chunks if chunk.path.exists())

    with watched(count, plan.num_items, progress):
        fabric.launch(partial(_encode_share, plan=plan, spec=spec))


def _encode_share(fabric: Fabric, plan: FeaturePlan, spec: EncoderSpec) -> None:
    plan = fabric.broadcast(plan)
    encoder = load_encoder(spec)
    assert encoder is not None
    if encoder.key != plan.record.key:
        raise DataError(
            f"process {fabric.global_rank} has loaded the encoder {encoder.key}, the first process "
            f"{plan.record.key}. Next: the same model files, libraries and kind of device on all "
            f"machines, or --set features.precision=32-true"
        )
    for chunk in plan.chunks[fabric.global_rank :: fabric.world_size]:
        encode_chunk(chunk, encoder)
    fabric.barrier()
    if fabric.is_global_zero:
        finish_features(plan)
    fabric.barrier()
