import json

import pytest
from PIL import Image

from experiments.demo import PRETRAINED, SCRATCH, run_demo
from experiments.figures import draw_curves, read_curve


def test_a_curve_is_read_from_a_run_folder_and_drawn(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,val/ndcg@10\n1,0.25\n2,0.5\n")
    curve = read_curve(tmp_path, "val/ndcg@10")
    assert curve == [(1.0, 0.25), (2.0, 0.5)]
    draw_curves({"A": {"one": [curve], "other": [curve, curve]}}, "val/ndcg@10", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width >= 500
        assert len(picture.convert("RGB").resize((64, 64)).getcolors()) > 20


@pytest.mark.slow
def test_the_demo_shows_pretraining_and_is_not_done_twice(tmp_path):
    lines = []
    report = run_demo(tmp_path, seeds=1, echo=lines.append)
    assert list(report.results["domains"]) == ["MiniOffice", "MiniArts"]
    for rows in report.results["domains"].values():
        ndcg = {way: row["metrics"]["ndcg@10"]["value"] for way, row in rows.items()}
        assert ndcg["popularity"] * 2 < ndcg[SCRATCH] < ndcg[PRETRAINED]
        assert rows[PRETRAINED]["best_epoch_by_seed"][0] < rows[SCRATCH]["best_epoch_by_seed"][0]
    assert "| popularity | " in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == report.results
    runs = sorted(tmp_path.glob("runs/*/*/*"))
    again = run_demo(tmp_path, seeds=1, echo=lines.append)
    assert sorted(tmp_path.glob("runs/*/*/*")) == runs
    assert again.results["domains"] == report.results["domains"]
