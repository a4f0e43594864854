"""Two worlds: a tiny one, and the one of the demo."""

import gzip
import json

import pytest

from pipeline.synthetic import DomainSpec, WorldSpec, build_world


@pytest.fixture(scope="session")
def tiny_spec():
    return WorldSpec(
        pretraining=(DomainSpec("MiniFood", 70, 45, 6.0),),
        downstream=(DomainSpec("MiniOffice", 60, 40, 6.0),),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_spec):
    return build_world(tmp_path_factory.mktemp("tiny"), seed=3, spec=tiny_spec)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("miniature"), seed=0)


@pytest.fixture(scope="session")
def read_metadata():
    """Read a domain's metadata from disk, in file order."""

    def read(world, name):
        path = world.source(name) / f"meta_{name}.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    return read
