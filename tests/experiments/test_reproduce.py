import json
import re

import pytest

from experiments.demo import PRETRAINED, SCRATCH, run_demo
from experiments.reproduce import REPORTS, find_reports, reproduce
from experiments.studies import STUDIES
from mmm4rec.errors import ConfigError


def read(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_prepared_data_the_report_says_what_makes_it(tmp_path):
    lines = []
    reproduce(
        ["table6", "main"],
        world="amazon",
        seeds=2,
        folder=tmp_path,
        domains=["Scientific", "Office"],
        settings=["trainer.max_epochs=3"],
        echo=lines.append,
    )
    command = f"mmm4rec prepare --domain Scientific --data-dir {tmp_path / 'data'}"
    assert any(command in line for line in lines)
    for table in ("table6", "main"):
        text = (tmp_path / "reports" / "amazon" / table / "report.md").read_text()
        text = text.replace("\\", "")  # Markdown's escapes
        assert command in text
        assert f"mmm4rec prepare --domain Kindle --data-dir {tmp_path / 'data'}" in text
        repeat = f"mmm4rec reproduce {table} --world amazon --seeds 2"
        options = "--domain Scientific --domain Office --set trainer.max_epochs=3"
        assert f"{repeat} {options}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"reports"}


def test_a_report_is_there_before_the_runs_of_the_next_one_begin(tmp_path, monkeypatch):
    found = []

    def execute(specs, workspace, **options):
        found.append([path.parent.name for path in tmp_path.rglob("report.md")])
        return {}

    monkeypatch.setattr("experiments.reproduce.execute", execute)
    reproduce(["table5", "table6"], world="amazon", seeds=1, folder=tmp_path, echo=str)
    assert found == [[], ["table5"]]


def test_a_plan_writes_nothing(tmp_path):
    lines = []
    reproduce(["table5"], world="mini", seeds=2, folder=tmp_path, plan=True, echo=lines.append)
    assert list(tmp_path.iterdir()) == []
    (text,) = lines
    assert "MiniOffice: pre-trained, with item bias, seed 1" in text
    assert "18 runs: 0 done, 0 to do, 18 cannot begin" in text  # the miniature is not made yet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tables": ["table7"]},
            f"no table 'table7': allowed are {', '.join(REPORTS)}, studies. Next: ",
        ),
        ({"seeds": 0}, "--seeds 0: allowed are 1 and more. Next: --seeds 1"),
        ({"jobs": 0}, "--jobs 0: allowed are 1 and more. Next: --jobs 1"),
        ({"world": "big"}, "no world 'big'"),
        ({"settings": ["model.width=3"], "world": "amazon"}, "unknown key 'model.width'"),
    ],
)
def test_what_is_not_allowed(options, message, tmp_path):
    options = {"tables": ["table5"], "world": "mini", "seeds": 1, **options}
    with pytest.raises(ConfigError, match=re.escape(message)):
        reproduce(folder=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_reports_are_found_by_name_and_the_studies_all_together():
    assert list(find_reports(["main", "table5", "main"])) == ["main", "table5"]
    assert list(find_reports(["table6", "studies"])) == ["table6", *STUDIES]
    assert {"table5", "table6", "main", *STUDIES} == set(REPORTS)
    with pytest.raises(ConfigError, match="allowed are table5, table6, main, "):
        find_reports([])


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_names_its_runs(name, workspace):
    report = REPORTS[name]
    specs = report.specs(workspace, 2)
    assert report.title
    assert {spec.seed for spec in specs} == {0, 1}
    assert {domain for spec in specs for domain in spec.domains} <= {"MiniOffice"}


@pytest.mark.slow
def test_the_miniature_from_raw_files_to_the_transfer_table_and_the_demo(tmp_path):
    lines = []
    options = {"world": "mini", "seeds": 1, "folder": tmp_path, "echo": lines.append}
    reproduce(["table5"], **options)
    report = tmp_path / "reports" / "mini" / "table5"
    text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
    for content in (text, page):
        assert "mmm4rec reproduce table5 --world mini --seeds 1" in content
        for name in ("MiniOffice", "MiniArts", "pre-trained, with item bias", "ndcg@50"):
            assert name in content
    assert "data:image/png;base64," in page
    assert not re.search(r"""(?:src|href)=["']?http""", page)  # self-contained
    runs = sorted(tmp_path.glob("demo/runs/*/*/*/results.json"))
    assert len(runs) == 1 + 8
    before = read(tmp_path / "demo")
    lines.clear()
    reproduce(["table5"], **options)
    assert read(tmp_path / "demo") == before  # nothing was done again
    lines.clear()
    reproduce(["table5"], plan=True, **options)
    assert "9 runs: 9 done, 0 to do, 0 cannot begin" in lines[0]

    demo, known = tmp_path / "demo", read(tmp_path / "demo" / "runs")
    found = run_demo(demo, seeds=1, echo=lines.append)
    made = read(demo / "runs")
    assert known.items() <= made.items()  # what the table trained is not trained again
    assert len(sorted(demo.glob("runs/*/*/*/results.json"))) == 1 + 8 + 2  # and popularity
    assert list(found.results["domains"]) == ["MiniOffice", "MiniArts"]
    for rows in found.results["domains"].values():
        ndcg = {way: row["metrics"]["ndcg@10"]["value"] for way, row in rows.items()}
        assert ndcg["popularity"] * 2 < ndcg[SCRATCH] < ndcg[PRETRAINED]
        assert rows[PRETRAINED]["best_epoch_by_seed"][0] < rows[SCRATCH]["best_epoch_by_seed"][0]
    assert "| popularity | " in (demo / "report.md").read_text()
    assert json.loads((demo / "results.json").read_text()) == found.results
    again = run_demo(demo, seeds=1, echo=lines.append)
    assert again.results["domains"] == found.results["domains"]
    assert read(demo / "runs") == made
