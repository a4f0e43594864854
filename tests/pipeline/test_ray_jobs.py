"""Ray's workers write the bytes of one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image

from mmm4rec.config import FeaturesConfig
from mmm4rec.errors import ConfigError, DataError
from pipeline import ray_jobs
from pipeline.encoders import EncoderSpec, load_encoder
from pipeline.encoding import encode_chunk
from pipeline.feature_plan import finish_features, plan_features
from pipeline.feature_store import EncoderRecord, read_shard
from pipeline.features import image_inputs, text_inputs
from pipeline.ray_jobs import encode_with_ray, ray_cluster

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
Cluster = pytest.importorskip("ray.cluster_utils", reason="needs the extra [ray]").Cluster
# Ray copies its own settings, deprecated ones among them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

HASHING = EncoderSpec("text", "hashing", "cpu")
TEXTS = pl.DataFrame(
    {"item_id": range(1, 81), "text": [f"lamp {n % 50}" if n % 9 else " " for n in range(80)]},
    schema={"item_id": pl.UInt32, "text": pl.String},
)


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster("features.engine", 2):
            yield


def plan(folder, spec=HASHING, items=None, image_folder=None, shard_size=16):
    encoder = load_encoder(spec)
    inputs = text_inputs(TEXTS) if items is None else items
    record = EncoderRecord(
        encoder=encoder.name,
        revision=None,
        preprocessing=encoder.preprocessing,
        key=encoder.key,
        width=encoder.width,
        blank=encoder.blank.tolist(),
        fingerprint="feed",
        num_items=len(inputs),
    )
    return plan_features(folder, record, inputs, shard_size, image_folder=image_folder)


def encode_here(made, spec=HASHING):
    encoder = load_encoder(spec)
    for chunk in made.chunks:
        encode_chunk(chunk, encoder)
    finish_features(made)


@pytest.mark.slow
def test_ray_that_is_started_here_is_left_at_the_end():
    with ray_cluster("features.engine", 3):
        assert ray.cluster_resources()["CPU"] == 3
        address = ray.get_runtime_context().gcs_address
        with ray_cluster("features.engine", 1):  # takes what is there
            assert ray.cluster_resources()["CPU"] == 3
        assert ray.is_initialized()
    assert not ray.is_initialized()
    with pytest.raises(ConfigError, match="nobody answers"):
        ray_jobs._check_address(address)


@pytest.mark.slow
def test_the_cluster_that_the_address_names(monkeypatch, tmp_path, read_tree):
    encode_here(plan(tmp_path / "one"))
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        machines.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", machines.address)
        encode_with_ray(plan(tmp_path / "two"), HASHING, FeaturesConfig(devices=2))
        assert not ray.is_initialized()
        with ray_cluster("features.engine", 9):
            assert ray.cluster_resources()["CPU"] == 2
    finally:
        machines.shutdown()
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_write_the_bytes_of_one_process(tmp_path, read_tree):
    encode_here(plan(tmp_path / "one"))
    seen = []
    made = plan(tmp_path / "two")
    assert len(made.chunks) == 3
    config = FeaturesConfig(devices=2)
    encode_with_ray(made, HASHING, config, lambda *done: seen.append(done))
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")
    assert seen[-1] == (80, 80)
    assert seen == sorted(seen)
    assert len(seen) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pictures_and_a_model_of_relative_paths(tmp_path, monkeypatch, read_tree):
    (tmp_path / "images").mkdir()
    for n in range(20):
        Image.linear_gradient("L").rotate(17 * n).save(tmp_path / "images" / f"{n}.png")
    (tmp_path / "images" / "4.png").write_bytes(b"<html>")
    monkeypatch.chdir(tmp_path)  # not where the workers are
    files = pl.DataFrame(
        {"item_id": range(1, 21), "file": [f"{n}.png" if n % 7 else None for n in range(20)]},
        schema={"item_id": pl.UInt32, "file": pl.String},
    )
    spec = EncoderSpec("image", "pixels")
    for name in ("one", "two"):
        made = plan(Path(name), spec, image_inputs(files), Path("images"), 6)
        run = encode_here if name == "one" else encode_with_ray
        run(made, spec, *([FeaturesConfig(devices=2)] if name == "two" else []))
    assert read_tree(Path("one")) == read_tree(Path("two"))
    present = [read_shard(path, 768)[1] for path in sorted(Path("two").glob("*.parquet"))]
    assert sum(map(sum, present)) == 20 - 3 - 1


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_only_what_is_missing_is_encoded(tmp_path, read_tree, monkeypatch):
    encode_here(plan(tmp_path / "one"))
    made = plan(tmp_path / "two")
    encode_chunk(made.chunks[0], load_encoder(HASHING))  # and then it was killed
    again, given = plan(tmp_path / "two"), []
    assert [chunk.inputs for chunk in again.chunks] == [one.inputs for one in made.chunks[1:]]
    run_jobs = ray_jobs.run_jobs

    def note(worker, arguments, items, *rest, **named):
        given.extend(items)
        return run_jobs(worker, arguments, items, *rest, **named)

    monkeypatch.setattr(ray_jobs, "run_jobs", note)
    encode_with_ray(again, HASHING, FeaturesConfig(devices=2))
    assert given == again.chunks
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


RUN = """
import sys
from pathlib import Path
from tests_of import FeaturesConfig, HASHING, encode_with_ray, plan
encode_with_ray(plan(Path(sys.argv[1]), shard_size=2), HASHING, FeaturesConfig(devices=2))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_run_is_carried_on(tmp_path, read_tree):
    encode_here(plan(tmp_path / "one", shard_size=2))
    (tmp_path / "tests_of.py").symlink_to(Path(__file__).resolve())
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    folder = tmp_path / "two"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], env=where)
    while not list(folder.glob("encoding/*.parquet")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(2)  # Ray's processes find out a little later
    again = plan(folder, shard_size=2)
    assert 0 < len(again.chunks) < len(plan(tmp_path / "three", shard_size=2).chunks)
    encode_with_ray(again, HASHING, FeaturesConfig(devices=2))
    assert read_tree(tmp_path / "one") == read_tree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_another_encoder_in_a_worker_is_refused(tmp_path):
    made = plan(tmp_path)
    made = replace(made, record=made.record.model_copy(update={"key": "other-0"}))
    message = r"on \S+ has loaded the encoder hashing-\w+, this process other-0\. Next"
    with pytest.raises(DataError, match=message):
        encode_with_ray(made, HASHING, FeaturesConfig(devices=2))
    assert not list(tmp_path.glob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_full_disk_is_raised_as_it_is(tmp_path):
    made = plan(tmp_path)
    (tmp_path / "encoding").write_text("in the way")  # where a folder has to be
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        encode_with_ray(made, HASHING, FeaturesConfig(devices=2))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_there_must_be_a_gpu_for_each_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_jobs, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 2.0})
    message = r"devices is 3, the Ray cluster has 2 GPUs\. Next: --set features\.devices=2,"
    with pytest.raises(ConfigError, match=message):
        encode_with_ray(plan(tmp_path), HASHING, FeaturesConfig(devices=3))


def test_nothing_is_started_where_all_is_encoded(tmp_path, monkeypatch, read_tree):
    encode_here(plan(tmp_path))
    before, seen = read_tree(tmp_path), []
    monkeypatch.setattr(ray_jobs, "ray_cluster", None)
    encode_with_ray(plan(tmp_path), HASHING, FeaturesConfig(), lambda *done: seen.append(done))
    assert read_tree(tmp_path) == before
    assert seen == [(80, 80)]


@pytest.mark.parametrize("missing", ["ray", "ray.data"])
def test_ray_has_to_be_installed(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    message = r"^images\.engine ray needs the extra: pip install 'mmm4rec\[ray\]'$"
    with pytest.raises(ConfigError, match=message), ray_cluster("images.engine", 1):
        pass


def test_somebody_has_to_answer_at_the_address(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        message = rf"^RAY_ADDRESS is '{address}', where nobody answers: .*refused.* Next: ray start"
        with pytest.raises(ConfigError, match=message), ray_cluster("images.engine", 1):
            pass


def test_a_worker_elsewhere_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "clip").mkdir()
    assert ray_jobs._anywhere(EncoderSpec("text", "model")).name == str(tmp_path / "model")
    assert ray_jobs._anywhere(EncoderSpec("text", "clip")).name == "clip"
    assert ray_jobs._anywhere(EncoderSpec("text", "owner/name")).name == "owner/name"
