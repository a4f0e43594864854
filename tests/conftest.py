import os

# The models of the tests are tiny: a second thread only waits, and on a busy machine it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from typer.testing import CliRunner

import cli
from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import Config
from mmm4rec.settings import load_config
from pipeline.datamodule import SequenceDataModule
from pipeline.schema import sha256_file
from pipeline.sequences import FlatSequences
from pipeline.synthetic import DomainSpec, WorldSpec, build_world, serve

TINY_MODEL = (
    "model={d_model: 16, d_feed_forward: 16, d_state: 4, head_dim: 8, num_groups: 2, max_len: 6, "
    "dropout: 0.1, item_dropout: 0.1}",
    "trainer={accumulate_grad_batches: 1, accelerator: cpu, devices: 1, max_epochs: 3}",
    "optimizer.lr=0.01",
    "data.batch_size=32",
    "evaluation.bootstrap_samples=100",
)


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """Settings of a model that trains in a moment."""
    return lambda *overrides: load_config(None, [*TINY_MODEL, *overrides])


@pytest.fixture
def tiny_catalogue() -> Callable[..., ItemCatalogue]:
    """Random features; every fourth item has no image."""

    def build(
        num_items: int = 30, *, fingerprint: str = "tiny", has_time: bool = True, seed: int = 0
    ) -> ItemCatalogue:
        generator = torch.Generator().manual_seed(seed)

        def features(width: int, every: int) -> ModalityFeatures:
            present_I = (
                torch.arange(num_items + 1) % every != 0
                if every
                else torch.ones(num_items + 1, dtype=torch.bool)
            )
            present_I[0] = False
            values_IF = torch.randn(num_items + 1, width, generator=generator) * present_I[:, None]
            return ModalityFeatures(
                values_IF.half(), present_I, torch.randn(width, generator=generator), f"key{width}"
            )

        modalities = {"text": features(12, 0), "image": features(10, 4)}
        return ItemCatalogue(modalities, fingerprint, has_time)

    return build


@pytest.fixture
def tiny_data(tiny_catalogue) -> Callable[..., SequenceDataModule]:
    """Users who walk through the items in steps of 1 or 2: easy to learn."""

    def build(
        config: Config,
        *,
        stage: str = "finetune",
        domain: str = "Tiny",
        num_users: int = 40,
        num_items: int = 30,
        length: int = 7,
        **catalogue_options,
    ) -> SequenceDataModule:
        generator = torch.Generator().manual_seed(1)
        start_U = torch.randint(0, num_items, (num_users, 1), generator=generator)
        stride_U = torch.randint(1, 3, (num_users, 1), generator=generator)
        items_UL = (start_U + stride_U * torch.arange(length)) % num_items + 1
        gaps_UL = torch.randint(0, 90, (num_users, length), generator=generator) * 86_400
        sequences = FlatSequences(
            items_UL.flatten(),
            (1_400_000_000 + gaps_UL.cumsum(1)).flatten(),
            torch.arange(0, num_users * length + 1, length),
        )
        data = SequenceDataModule(
            config.data,
            [domain],
            stage=stage,
            max_len=config.model.max_len,
            seed=config.trainer.seed,
        )
        data._loaded = (sequences, tiny_catalogue(num_items, **catalogue_options))
        data.prepare_data = lambda: None
        data.lock = lambda: {domain: {"users": num_users, "items": num_items}}
        return data

    return build


TINY_WORLD = WorldSpec(
    pretraining=(DomainSpec("MiniFood", 70, 45, 6.0), DomainSpec("MiniHome", 70, 45, 6.0)),
    downstream=(DomainSpec("MiniOffice", 60, 40, 6.0),),
)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A miniature Amazon of three small domains; its images are served."""
    built = build_world(tmp_path_factory.mktemp("world"), seed=3, spec=TINY_WORLD)
    with pytest.MonkeyPatch.context() as patch, serve(built):
        patch.setattr("pipeline.synthetic.shop.SLOW_SECONDS", 0.01)
        yield built


@pytest.fixture(autouse=True)
def brief_waits(request, monkeypatch):
    """Wait only briefly before a flaky picture of the world is asked for again."""
    if "world" in request.fixturenames:
        monkeypatch.setattr("pipeline.fetching.BACKOFF_S", 0.01)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Paths that the world's server was asked for."""
    paths: list[str] = []
    parse = BaseHTTPRequestHandler.parse_request

    def record(self):
        parsed = parse(self)
        paths.append(self.path)
        return parsed

    monkeypatch.setattr(BaseHTTPRequestHandler, "parse_request", record)
    return paths


@pytest.fixture(scope="session")
def invoke():
    """Run a command line as a user would."""
    return lambda *arguments: CliRunner().invoke(cli.app, [str(part) for part in arguments])


@pytest.fixture(scope="session")
def prepare(world, invoke):
    """Prepare a domain of the world through the command line, with training-free encoders."""

    def run(data_dir, domain="MiniOffice", *options):
        source = ("--domain", domain, "--source", world.source(domain))
        return invoke("prepare", *source, "--data-dir", data_dir, "--config", "demo", *options)

    return run


@pytest.fixture(scope="session")
def train(invoke):
    """Run `pretrain` or `finetune` with a model that trains in a moment."""
    settings = [part for setting in TINY_MODEL for part in ("--set", setting)]

    def run(verb, data_dir, runs_dir, *options):
        folders = ("--data-dir", data_dir, "--runs-dir", runs_dir)
        return invoke(verb, *folders, *settings, *options)

    return run


@pytest.fixture(scope="session")
def data_dir(world, prepare, tmp_path_factory):
    """A data folder with all domains of the world prepared; only to be read."""
    folder = tmp_path_factory.mktemp("data")
    for domain in world.domains:
        assert prepare(folder, domain).exit_code == 0
    return folder


@pytest.fixture(scope="session")
def trained(train, data_dir, tmp_path_factory):
    """Results of undisturbed runs on MiniOffice by verb, their `folder` among them."""
    runs = tmp_path_factory.mktemp("runs")
    return {
        verb: json.loads(train(verb, data_dir, runs, "--domain", "MiniOffice", "--json").stdout)
        for verb in ("pretrain", "finetune")
    }


@pytest.fixture(scope="session")
def assert_fails():
    """Check that a command ended with a code and one line on stderr that matches all patterns."""

    def check(result, code, *patterns):
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        for pattern in patterns:
            assert re.search(pattern, result.stderr), result.stderr

    return check


@pytest.fixture(scope="session")
def assert_nothing_half_written():
    """Check that a folder holds no temporary file."""

    def check(folder):
        assert [path for path in folder.rglob("*") if ".tmp" in path.name] == []

    return check


@pytest.fixture(scope="session")
def read_tree():
    """Read a folder: size and digest of every file by its relative path."""
    return lambda folder: {
        str(path.relative_to(folder)): f"{path.stat().st_size} bytes, sha256 {sha256_file(path)}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
