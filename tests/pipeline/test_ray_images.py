"""The image stage over Ray does what one process does."""

import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import polars as pl
import pytest

from mmm4rec.config import ImagesConfig
from mmm4rec.errors import DataError
from pipeline import ray_images
from pipeline.hosts import Host
from pipeline.image_shares import SHARES
from pipeline.item_queue import Tally
from pipeline.outcomes import OUTCOMES, PARTS, OutcomeLog, image_status
from pipeline.ray_images import fetch_with_ray
from pipeline.ray_jobs import ray_cluster

pytest.importorskip("ray", reason="needs the extra [ray]")
# Ray copies its own settings, deprecated ones among them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

SETTINGS = {
    "allow_private_hosts": True,
    "rate_per_host": 1e6,
    "connections": 4,
    "workers": 2,
    "attempts": 2,
}
TIMES = ("seconds", "fetched_at")


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster("images.engine", 2):
            yield


@pytest.fixture
def silent_url():
    """An address of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def fetch_ray(items, folder, progress=None, *, retry_temporary=False, **settings):
    config = ImagesConfig(**{**SETTINGS, **settings})
    return fetch_with_ray(items, folder, config, progress, retry_temporary=retry_temporary)


def pictures(read_tree, folder):
    return {name: body for name, body in read_tree(folder).items() if name != OUTCOMES}


def tries(mirror):
    """Paths of every kind, the failures among them, and lists of them that overlap."""
    single = [
        "200/0.png",
        "404/a",
        "403/b",
        "503/c",
        "loop",
        "hop",
        "half",
        "200/none",
        "cut_header",
    ]
    urls = [[f"{mirror.url}/{path}"] for path in single]
    urls += [[f"{mirror.url}/200/{n % 3}.png?{n}"] for n in range(30)]
    urls += [
        [f"{mirror.url}/404/a", f"{mirror.url}/200/1.png"],
        None,
        [],
        ["nonsense", "", "ftp://x"],
    ]
    urls += [[f"{mirror.url}/404/a", f"{mirror.url}/410/d", f"{mirror.url}/200/2.png"]]
    return [*urls, *urls[:3]]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_table_and_the_files_are_those_of_one_process(
    mirror, tmp_path, catalogue, fetch, read_tree
):
    items, seen = catalogue(*tries(mirror)), []
    one = fetch(items, tmp_path / "one", attempts=2)
    asked = Counter(mirror.requests)
    mirror.requests.clear()
    many = fetch_ray(items, tmp_path / "many", lambda *done: seen.append(done))
    assert many.drop(TIMES).equals(one.drop(TIMES))
    assert pl.read_parquet(tmp_path / "many" / OUTCOMES).equals(many)
    assert pictures(read_tree, tmp_path / "many") == pictures(read_tree, tmp_path / "one")
    assert mirror.requests == asked
    assert seen[-1] == (len(items), len(items))
    mirror.requests.clear()
    assert fetch_ray(items, tmp_path / "many").equals(many)
    assert not mirror.requests
    again = fetch_ray(items, tmp_path / "many", retry_temporary=True)
    assert again.drop(TIMES).equals(one.drop(TIMES))
    assert set(mirror.requests) == {"/503/c", "/half", "/200/none", "/cut_header"}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_host_that_is_silent_ends_the_stage(mirror, tmp_path, catalogue, fetch, silent_url):
    urls = [f"{mirror.url}/200/{n % 3}.png?{n}" for n in range(40)]
    items = catalogue(*([url] for url in urls), *([f"{silent_url}/{n}.png"] for n in range(60)))
    host = silent_url.removeprefix("http://")
    message = (
        rf"^images: {host} does not answer: \d+ requests in a row without a useful answer "
        r"\(connection\) since .* UTC\. 40 of 100 items are done and kept, 60 remain\. Next: "
    )
    for folder, run in ((tmp_path / "one", fetch), (tmp_path / "many", fetch_ray)):
        with pytest.raises(DataError, match=message):
            run(items, folder)
        known = OutcomeLog(folder).known
        assert [known[url].status for url in urls] == ["ok"] * 40
        assert not list((folder / PARTS).glob(f"{SHARES}*"))
        assert not (folder / OUTCOMES).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_few_items_without_a_host_do_not_matter(mirror, tmp_path, catalogue, fetch, silent_url):
    urls = [f"{mirror.url}/200/{n % 3}.png?{n}" for n in range(8)]
    lost = [f"{silent_url}/{n}.png" for n in range(6)]
    items = catalogue(*([url] for url in urls + lost))
    one = fetch(items, tmp_path / "one", host_failures=1, connections=1)
    many = fetch_ray(items, tmp_path / "many", host_failures=1, connections=2)
    for table in (one, many):  # the run is finished: the table has what was not asked as well
        status = image_status(items, table, 0)["image_status"]
        assert status.to_list() == ["ok"] * 8 + ["host_unreachable"] * 6
    asked = Counter(mirror.requests)
    fetch_ray(items, tmp_path / "many", host_failures=1, connections=2)
    assert mirror.requests == asked


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_full_disk_keeps_what_is_known(mirror, tmp_path, catalogue):
    items = catalogue([f"{mirror.url}/404/a"], [f"{mirror.url}/200/0.png"])
    fetched = fetch_ray(items, tmp_path / "other")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / fetched["file"][1][:2]).write_text("in the way")  # where a folder has to be
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        fetch_ray(items, folder)
    assert OutcomeLog(folder).known[f"{mirror.url}/404/a"].status == "permanent"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_without_images_nothing_is_asked(mirror, tmp_path, catalogue):
    items = catalogue([f"{mirror.url}/200/0.png"], None)
    assert fetch_ray(items, tmp_path, enabled=False)["status"].to_list() == ["skipped"]
    assert fetch_ray(catalogue(None), tmp_path).is_empty()
    assert fetch_ray(catalogue(), tmp_path).is_empty()
    assert not mirror.requests


RUN = """
import sys, polars as pl
from pathlib import Path
from mmm4rec.config import ImagesConfig
from pipeline.ray_images import fetch_with_ray
config = ImagesConfig(allow_private_hosts=True, rate_per_host=1e6, connections=2, workers=2)
fetch_with_ray(pl.read_parquet(sys.argv[1]), Path(sys.argv[2]), config)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_run_is_carried_on(mirror, tmp_path, monkeypatch, catalogue, picture, fetch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    mirror.delay_s = 0.05
    paths = [f"200/{n % 3}.png?{n}" if n % 3 else f"404/{n}" for n in range(300)]
    items = catalogue(*([f"{mirror.url}/{path}"] for path in paths))
    items.write_parquet(tmp_path / "items.parquet")
    folder = tmp_path / "images"
    command = [sys.executable, "-c", RUN, str(tmp_path / "items.parquet"), str(folder)]
    process = subprocess.Popen(command)
    while mirror.requests.total() < 200 and process.poll() is None:
        time.sleep(0.01)
    mirror.delay_s = 0.5  # Ray's processes find out a little later
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    quiet = -1
    while quiet != mirror.requests.total():
        quiet = mirror.requests.total()
        time.sleep(2)
    found = [OutcomeLog(share).known for share in (folder / PARTS).glob(f"{SHARES}*")]
    known = {url.removeprefix(mirror.url) for one in found for url in one}
    assert len(found) == 2
    assert 50 < len(known) < 300
    before = Counter(mirror.requests)
    mirror.delay_s = 0
    outcomes = fetch_ray(items, folder)
    assert outcomes["status"].to_list() == ["ok" if n % 3 else "permanent" for n in range(300)]
    assert not set(mirror.requests - before) & known
    one = fetch(items, tmp_path / "one")
    assert outcomes.drop(TIMES).equals(one.drop(TIMES))


def test_the_board_ends_the_stage_for_all_shares_together():
    def report(done, stranded):
        host = Host("a.example:https", 1, 1)
        host.record_failure("dns", 1.0, is_first=True, is_probe=False)
        return ray_images._report(Tally(1000, done, Counter({host: stranded} if stranded else {})))

    board = ray_images._Board(1000)
    assert not board.tell(0, report(50, 10))
    assert not board.tell(1, report(20, 0))
    assert not board.tell(0, report(60, 10))  # takes the place of what it said before
    assert board.count() == 80
    assert board.tell(1, report(30, 1))
    message = (
        r"^images: a\.example does not answer: 1 requests .* \(dns\) since .* "
        r"79 of 1,000 items are done and kept, 921 remain"
    )
    with pytest.raises(DataError, match=message):
        ray_images._check([report(60, 10), report(30, 1)], 1000)


def test_a_failure_of_a_worker_is_raised():
    reports = [
        ray_images._report(Tally(9, 3)),
        ray_images._report(Tally(9, 2), (), OSError("No space left")),
    ]
    with pytest.raises(OSError, match="No space left"):
        ray_images._check(reports, 9)


def test_a_worker_ends_when_the_stage_does(monkeypatch):
    worker = ray_images._Fetching(None)
    told = []
    monkeypatch.setattr(worker, "_tell", lambda share, report: told.append(report) or len(told) > 1)
    tally = Tally(5, 0)
    tell = worker._teller(None, tally)
    tell(0, 5)
    tally.done = 1
    tell(1, 5)  # too soon after the last time
    assert [report.done for report in told] == [0]
    monkeypatch.setattr(ray_images, "TELL_S", 0.0)
    with pytest.raises(DataError, match=r"a host that another worker asks does not answer\. Next"):
        tell(1, 5)
    assert [report.done for report in told] == [0, 1]
