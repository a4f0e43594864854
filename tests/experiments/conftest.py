import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.workspace import Workspace
from mmm4rec.runner import Run


@pytest.fixture
def workspace(data_dir, tmp_path):
    """The tiny world, prepared, with runs and reports in a folder of the test's own."""
    return Workspace(
        name="tiny",
        data_dir=data_dir,
        runs_dir=tmp_path / "runs",
        reports_dir=tmp_path / "reports",
        pretraining=("MiniFood", "MiniHome"),
        downstream=("MiniOffice",),
        presets={"pretrain": "demo-pretrain", "finetune": "demo-finetune"},
        settings=(
            "model.d_model=16",
            "model.d_feed_forward=16",
            "model.d_state=4",
            "model.head_dim=8",
            "model.num_groups=2",
            "model.max_len=6",
            "trainer.max_epochs=2",
            "evaluation.bootstrap_samples=100",
        ),
    )


@pytest.fixture
def finished(tmp_path):
    """Make the folder of a run that never was, from the ranks of its users' targets."""

    def build(name, ranks, epochs=(), **results):
        folder = tmp_path / "finished" / name
        folder.mkdir(parents=True)
        table = {
            "user_id": pa.array(range(len(ranks)), pa.uint32()),
            "better": pa.array(ranks, pa.uint32()),
            "tied": pa.array([0] * len(ranks), pa.uint32()),
        }
        pq.write_table(pa.table(table), folder / "ranks.parquet")
        rows = [f"{number},{value}" for number, value in enumerate(epochs, start=1)]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val/ndcg@10", *rows]))
        (folder / "results.json").write_text(json.dumps(results))
        return Run(folder, results)

    return build
