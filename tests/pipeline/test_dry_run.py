import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments.presets import find_preset
from mmm4rec.errors import ConfigError
from mmm4rec.settings import load_config
from pipeline.build import prepare_domain
from pipeline.domains import find_domain
from pipeline.dry_run import format_plan, plan_domain

DOMAIN = "MiniOffice"


@pytest.fixture
def settings(tmp_path):
    return lambda *overrides: load_config(
        find_preset("demo"), [*overrides, f"data.data_dir={tmp_path / 'data'}"]
    )


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path):
    """The address of a server of the folder `mirror`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_folder_that_is_there_needs_nothing_but_images(world, settings, tmp_path):
    source = str(world.source(DOMAIN))
    plan = plan_domain(DOMAIN, settings(), source=source)
    assert [file["is_present"] for file in plan["files"]] == [True, True]
    assert (plan["bytes_to_fetch"], plan["file_requests"]) == (0, 0)
    assert plan["images"]["items"] is plan["images"]["least_requests"] is None
    assert not (tmp_path / "data").exists()
    lines = format_plan(plan).splitlines()
    assert lines[0] == DOMAIN
    assert lines[1].startswith(f"  there            {DOMAIN}.csv: ")
    assert lines[-1].endswith("how many is known once the metadata has been read")
    assert json.loads(json.dumps(plan)) == plan


def test_after_a_run_what_is_left_is_known(world, settings):
    source = str(world.source(DOMAIN))
    quiet = settings("images.enabled=false")
    prepare_domain(DOMAIN, quiet, source=source, echo=lambda line: None)
    assert plan_domain(DOMAIN, quiet, source=source)["images"] is None
    images = plan_domain(DOMAIN, settings("images.rate_per_host=2"), source=source)["images"]
    assert images == {
        "items": 40,
        "is_estimate": False,
        "least_requests": 38,  # two have no URL
        "least_seconds": 19,
        "least_bytes": None,
    }
    prepare_domain(DOMAIN, settings(), source=source, echo=lambda line: None)
    images = plan_domain(DOMAIN, settings(), source=source)["images"]
    assert (images["least_requests"], images["least_seconds"], images["least_bytes"]) == (0, 0, 0)


def test_a_server_is_asked_for_sizes_and_published_counts_stand_in(mirror, settings, tmp_path):
    for name, size in (("Office_Products.csv", 1_234), ("meta_Office_Products.json.gz", 5_678)):
        (tmp_path / "mirror" / name).write_bytes(b"x" * size)
    plan = plan_domain("Office", settings(), source=mirror)
    assert [(file["bytes"], file["is_present"]) for file in plan["files"]] == [
        (1_234, False),
        (5_678, False),
    ]
    assert (plan["bytes_to_fetch"], plan["file_requests"]) == (6_912, 2)
    assert plan["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    published = find_domain("Office").published.items
    assert (plan["images"]["least_requests"], plan["images"]["is_estimate"]) == (published, True)
    text = format_plan(plan)
    assert "missing          Office_Products.csv: 1,234 bytes, http://" in text
    assert "to fetch         6,912 bytes in 2 requests; " in text
    assert f"about {published:,} items; at least {published:,} requests, " in text
    assert not (tmp_path / "data").exists()


def test_an_unknown_domain_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"unknown domain 'Ofice'.*did you mean 'Office'"):
        plan_domain("Ofice", settings())
