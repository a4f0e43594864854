"""kill -9, a second process, a disk that is really full: in the end the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

DOMAIN = "MiniOffice"
NUM_KILLS = 20
# Slow enough for a kill to fall into every stage.
SETTINGS = ("images.rate_per_host=80", "images.connections=2", "features.shard_size=8")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(world):
    """The command line that prepares a domain of the world into a folder."""
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    start = [sys.executable, "-m", "mmm4rec", "prepare", "--domain", DOMAIN, "--config", "demo"]
    return lambda folder: [
        *map(str, start), "--source", str(world.source(DOMAIN)), "--data-dir", str(folder), *options
    ]  # fmt: skip


@pytest.fixture(scope="module")
def start(command):
    """Start preparing a domain in a process of its own; returns when it has said something."""

    def begin(folder):
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        return process, process.stdout.readline()

    return begin


@pytest.fixture(scope="module")
def undisturbed(start, read_tree, tmp_path_factory):
    """What an undisturbed run writes, and how long it takes after its first line, seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process, _ = start(folder)
    began = time.monotonic()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return read_tree(folder / "prepared"), time.monotonic() - began


def test_killed_twenty_times_the_folder_is_the_same(start, undisturbed, read_tree, tmp_path):
    expected, duration = undisturbed
    draw = random.Random(5)
    folder, num_kills, num_whole = tmp_path / "0", 0, 0
    while num_kills < NUM_KILLS:
        process, _ = start(folder)
        time.sleep(draw.uniform(0, 0.9 * duration))
        process.kill()
        said, _ = process.communicate()
        if process.returncode == 0:  # it was faster
            assert read_tree(folder / "prepared") == expected, said
            num_whole += 1
            folder = tmp_path / str(num_whole)
            continue
        num_kills += 1
        prepared = folder / "prepared" / DOMAIN
        if prepared.exists():  # whole, or not there; what replaces it may lie beside it
            whole = read_tree(folder / "prepared").items()
            assert {n: file for n, file in whole if n.startswith(f"{DOMAIN}/")} == expected
    process, first = start(folder)
    said, _ = process.communicate()
    assert process.returncode == 0, first + said
    assert read_tree(folder / "prepared") == expected
    assert [path for path in folder.rglob(".*") if path.name != ".lock"] == []


def test_two_at_once_the_second_waits_and_finds_it_done(
    start, undisturbed, read_tree, asked, tmp_path
):
    expected, _ = undisturbed
    first, line = start(tmp_path)
    first.send_signal(signal.SIGSTOP)  # it shall not be done before the second begins
    assert line.strip() == "tables ..."
    second, line = start(tmp_path)
    first.send_signal(signal.SIGCONT)
    work = tmp_path / "work" / DOMAIN
    assert line.strip() == f"{work} is in use by process {first.pid}; waiting until it is done ..."
    said = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "images: unchanged" not in said[0]
    for stage in ("tables", "images", "text features", "image features"):
        assert f"{stage}: unchanged" in said[1]
    assert read_tree(tmp_path / "prepared") == expected
    assert len(asked) > 0


def _can_mount():
    unshare = shutil.which("unshare")
    probe = [unshare or "", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return unshare and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("size_kb", [60, 130, 250])
def test_a_full_disk_loses_nothing(command, undisturbed, read_tree, tmp_path, size_kb):
    if not _can_mount():
        pytest.skip("a small disk needs user namespaces (unshare -rm)")
    expected, _ = undisturbed
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    prepare = " ".join(f"'{part}'" for part in command(disk))
    script = f"""
        mount -t tmpfs -o size={size_kb}k none '{disk}' || exit 99
        {prepare} > '{tmp_path}/first' 2>&1; echo $? > '{tmp_path}/code'
        mount -o remount,size=100m '{disk}' || exit 99
        {prepare} > '{tmp_path}/second' 2>&1 || exit 98
        cp -r '{disk}/prepared' '{out}'
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], check=False)
    first = (tmp_path / "first").read_text()
    assert (tmp_path / "code").read_text().strip() == "1", first
    assert "error: the disk is full" in first.splitlines()[-1]
    assert "Traceback" not in first
    assert done.returncode == 0, (tmp_path / "second").read_text()
    assert read_tree(out) == expected
