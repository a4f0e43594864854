"""Past one machine: jobs over a Ray cluster, and the feature stage as one of them.

    RAY_ADDRESS=<head>:6379 mmm4rec prepare --domain Office \
        --set features.engine=ray --set features.devices=16

All machines of the cluster have this package and the model files, at the same paths, and share the
data folder. Without RAY_ADDRESS, Ray is started on this machine for as long as a stage takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from mmm4rec.config import FeaturesConfig
from mmm4rec.errors import ConfigError, DataError, Mmm4RecError
from pipeline.encoders import NAMED, TRAINING_FREE, EncoderSpec, load_encoder
from pipeline.encoding import AnyEncoder, Chunk, encode_chunk
from pipeline.feature_plan import FeaturePlan, finish_features
from pipeline.images import Progress
from pipeline.model_files import resolve_device

Row: TypeAlias = dict[str, Any]  # of a Ray data set: plain values by column
ITEM = "item"  # the only column
ANSWER_S = 5.0  # within which the head of a cluster answers
# No word to Ray's makers, and none on the terminal: what matters comes back as an error.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# What a worker returns instead of raising it, which Ray would wrap.
FAILURES = (Mmm4RecError, OSError)


@contextlib.contextmanager
def ray_cluster(setting: str, workers: int) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or else start Ray on this machine.

    What has been started or connected to here is left at the end; Ray that was initialised before
    is used as it is.

    Args:
        setting: what asks for Ray, such as `images.engine`.
        workers: CPUs that a Ray on this machine is to count, so that all workers can run.

    Raises:
        ConfigError: Ray is not installed, or nobody answers at RAY_ADDRESS.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(f"{setting} ray needs the extra: pip install 'mmm4rec[ray]'") from None
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    here = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(
        **({} if address else here),
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": _import_path()}},
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


def run_jobs(
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    workers: int,
    *,
    num_gpus: int = 0,
) -> Iterator[Any]:
    """Give each item to the next worker that is free; to be used inside of `ray_cluster`.

    Args:
        worker: a class; each worker is an instance that is called with {"item": item} and returns
            {"item": result}. Items and results are of any kind that can be pickled.
        arguments: of its constructor.
        items: at least one.
        workers: at most, each with one CPU.
        num_gpus: of each worker.

    Yields:
        Results in any order.
    """
    import ray.data

    pool = ray.data.ActorPoolStrategy(
        size=min(workers, len(items)),
        max_tasks_in_flight_per_actor=1,  # or the first that is up would be given all
    )
    rows = [{ITEM: item} for item in items]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        worker, fn_constructor_args=arguments, compute=pool, num_cpus=1, num_gpus=num_gpus
    )
    for row in results.iter_rows():
        yield row[ITEM]


def encode_with_ray(
    plan: FeaturePlan,
    spec: EncoderSpec,
    config: FeaturesConfig,
    progress: Progress | None = None,
) -> None:
    """Encode what a plan lacks on a Ray cluster, and put the shards together.

    The files are those of a single process. Can be killed at any moment: a plan that is made again
    has only the chunks that are not encoded yet.

    Args:
        plan: its folder is shared by all machines.
        spec: what each worker loads.
        config: devices: workers in all, with a GPU each where the encoder runs on one.
        progress: called with items done and all items.

    Raises:
        ConfigError: Ray is not installed, the cluster is not there or has fewer GPUs than
            `devices`.
        DataError: another machine's encoder is not the same, or its output is not finite in
            float16.
        OSError: a file cannot be written.
    """
    done = plan.num_items - plan.num_new
    if plan.chunks:
        with ray_cluster("features.engine", config.devices):
            for encoded in _encode_chunks(plan, spec, config.devices):
                done += encoded
                if progress:
                    progress(done, plan.num_items)
    elif progress:
        progress(done, plan.num_items)
    finish_features(plan)


def _encode_chunks(plan: FeaturePlan, spec: EncoderSpec, devices: int) -> Iterator[int]:
    """Yield the number of inputs of each chunk that has been encoded."""
    num_gpus = int(resolve_device(spec.device).type == "cuda")
    _check_gpus(num_gpus * devices)
    arguments = (_anywhere(spec), plan.record.key)
    chunks = [_absolute(chunk) for chunk in plan.chunks]
    for result in run_jobs(_Encoding, arguments, chunks, devices, num_gpus=num_gpus):
        if isinstance(result, Exception):
            raise result
        yield result


class _Encoding:
    """A worker that encodes chunks with an encoder that it loads once."""

    def __init__(self, spec: EncoderSpec, key: str) -> None:
        self._spec = spec
        self._key = key

    def __call__(self, row: Row) -> Row:
        chunk: Chunk = row[ITEM]
        try:
            encode_chunk(chunk, self._encoder)
        except FAILURES as failure:
            return {ITEM: failure}
        return {ITEM: len(chunk.inputs)}

    @cached_property
    def _encoder(self) -> AnyEncoder:
        encoder = load_encoder(self._spec)
        assert encoder is not None
        if encoder.key != self._key:
            raise DataError(
                f"a worker on {socket.gethostname()} has loaded the encoder {encoder.key}, this "
                f"process {self._key}. Next: the same model files, libraries and kind of device on "
                f"all machines, or --set features.precision=32-true"
            )
        return encoder


def _absolute(chunk: Chunk) -> Chunk:
    """Return the chunk for a process that works in another folder."""
    folder = chunk.image_folder and chunk.image_folder.absolute()
    return replace(chunk, path=chunk.path.absolute(), image_folder=folder)


def _anywhere(spec: EncoderSpec) -> EncoderSpec:
    """Return the spec for a process that works in another folder."""
    is_short = spec.name in (*NAMED[spec.modality], TRAINING_FREE[spec.modality])
    if is_short or not Path(spec.name).is_dir():
        return spec
    return replace(spec, name=str(Path(spec.name).absolute()))


def _check_gpus(wanted: int) -> None:
    import ray

    found = int(ray.cluster_resources().get("GPU", 0))
    if found < wanted:  # or the workers would be waited for
        raise ConfigError(
            f"features.devices is {wanted}, the Ray cluster has {found} GPUs. "
            f"Next: --set features.devices={max(1, found)}, or --set features.device=cpu"
        )


def _check_address(address: str) -> None:
    """Refuse an address where nobody answers: Ray would try for minutes and end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # a word, such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, where nobody answers: {error}. Next: ray start --head on "
            f"that machine, or unset RAY_ADDRESS to start Ray on this one"
        ) from None


def _import_path() -> str:
    """Return PYTHONPATH for the workers: an installed wheel carries this package inside another."""
    own = str(Path(__file__).absolute().parents[1])
    return os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))
