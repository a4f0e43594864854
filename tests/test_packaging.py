"""The wheel: what it carries, what it adds to site-packages, and that it runs from there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from pipeline.synthetic import DomainSpec, WorldSpec, build_world, serve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FOLDERS = ("mmm4rec", "pipeline", "experiments")
FILES = ("cli.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def run(*command: object, cwd: Path) -> str:
    """Run a command that must succeed, away from this checkout; return what it printed."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources: building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    build = ["build", "--wheel", "--no-isolation", "--outdir", target]
    run(sys.executable, "-m", *build, cwd=source)
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel: its interpreter, and what site-packages gained."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    before = set(site.iterdir())
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    gained = {path.name for path in set(site.iterdir()) - before}
    # What it depends on is taken from here; an editable install here is not followed by this.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, gained


def test_the_wheel_carries_every_file_below_one_name(source, wheel):
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    in_checkout = {name for name in files if name == "cli.py" or name.startswith(FOLDERS)}
    expected = {
        name if name.startswith("mmm4rec/") else f"mmm4rec/_bundled/{name}" for name in in_checkout
    }
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    described = {name for name in found if name.startswith("mmm4rec-")}
    assert found - described == expected
    assert {name.split("/", 1)[1] for name in described} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert "mmm4rec/_bundled/experiments/presets/demo.yaml" in found


def test_site_packages_gains_one_name(installed):
    _, gained = installed
    assert {name.split("-")[0] for name in gained} == {"mmm4rec"}
    assert len(gained) == 2  # the package and its dist-info


def test_the_package_found_is_the_installed_one(installed, tmp_path):
    python, _ = installed
    code = "import mmm4rec; print(mmm4rec.__file__)"
    found = Path(run(python, "-P", "-c", code, cwd=tmp_path).strip())
    assert found.is_relative_to(python.parents[1])


def test_the_command_runs_away_from_the_checkout(installed, tmp_path):
    python, _ = installed
    assert "prepare" in run(python.parent / "mmm4rec", "--help", cwd=tmp_path)
    assert "prepare" in run(python, "-P", "-m", "mmm4rec", "--help", cwd=tmp_path)


def test_it_prepares_a_domain(installed, tmp_path):
    python, _ = installed
    spec = WorldSpec(pretraining=(), downstream=(DomainSpec("MiniOffice", 60, 40, 6.0),))
    world = build_world(tmp_path / "world", seed=3, spec=spec)
    options = ["--source", world.source("MiniOffice"), "--config", "demo", "--json"]
    with serve(world):
        command = [python.parent / "mmm4rec", "prepare", "--domain", "MiniOffice", *options]
        run(*command, cwd=tmp_path)
    folder = tmp_path / "data" / "prepared" / "MiniOffice"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"][-1]["users"] == 60
    assert manifest["counts"][-1]["items"] == 40
    assert {made["encoder"] for made in manifest["features"]} == {"hashing", "pixels"}
