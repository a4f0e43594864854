"""What importing costs, and what a machine that only trains can do without."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREPARING = ("polars", "_polars_runtime", "transformers", "tokenizers", "sentencepiece")
HEAVY = {"torch", "lightning", "polars", "transformers", "matplotlib", "numpy", "pyarrow"}
RUN_HELP = """
import sys
from mmm4rec.__main__ import main
sys.argv = ["mmm4rec", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
"""


def imported_after(code: str, *options: str, **env: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after `code`."""
    code += "\nimport json, sys; print(json.dumps([n for n in sys.modules if '.' not in n]))"
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def training_machine(tmp_path):
    """Everything that is installed here except what only prepares domains; no editable install."""
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.startswith((*PREPARING, "__editable__")):
            (tmp_path / installed.name).symlink_to(installed)
    return os.pathsep.join([str(ROOT), str(tmp_path)])


def test_training_needs_neither_polars_nor_an_encoder(training_machine):
    code = (
        "from importlib.util import find_spec\n"
        f"assert not any(map(find_spec, {PREPARING}))\n"
        "import mmm4rec.runner, mmm4rec.recommend, pipeline.datamodule, pipeline.prepared"
    )
    found = imported_after(code, "-S", PYTHONPATH=training_machine)
    assert {"mmm4rec", "pipeline", "torch", "lightning"} <= found
    assert not found & {"polars", "transformers"}


@pytest.mark.parametrize("code", ["import cli", "import mmm4rec", RUN_HELP])
def test_help_imports_nothing_heavy(code):
    assert not imported_after(code) & HEAVY


def test_the_model_leaves_optional_kernels_alone():
    found = imported_after("import mmm4rec.model, mmm4rec.ops.ssd as s; s.available_backends()")
    assert "torch" in found
    assert not found & {"mamba_ssm", "triton"}
