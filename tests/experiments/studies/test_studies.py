"""Each study end to end on tiny prepared domains."""

import pytest
from PIL import Image

from experiments.studies import STUDIES
from mmm4rec.run_folder import RESULTS


@pytest.fixture(scope="module")
def workspace(make_workspace):
    return make_workspace()


@pytest.fixture
def smaller(monkeypatch):
    """Fewer cases: the tests are of the machinery."""
    monkeypatch.setattr("experiments.studies.missing_images.SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr("experiments.studies.missing_images.POLICIES", ("learned", "white"))
    monkeypatch.setattr("experiments.studies.third_modality.STREAMS", STREAMS)
    monkeypatch.setattr(
        "experiments.studies.fidelity.OFFICIAL",
        {"loss": {"duplicate_targets": "negatives"}, "optimizer": {"accumulation": "sum"}},
    )


STREAMS = (("text", "image"), ("text", "image", "brand"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_one_table_and_one_picture_and_is_not_done_twice(
    name, workspace, run_study, smaller
):
    sections = run_study(STUDIES[name], workspace)
    assert len(sections) == (2 if name == "cold-items" else 1)
    for section in sections:
        [table] = section.tables
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert any(cell.estimate for row in table.rows for cell in row.cells)
        [figure] = section.figures
        with Image.open(figure.path) as picture:
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 20
    done = _results(workspace)
    assert done
    again = run_study(STUDIES[name], workspace)
    assert [s.tables for s in again] == [s.tables for s in sections]
    assert _results(workspace) == done


def _results(workspace):
    return {path: path.stat().st_mtime_ns for path in workspace.runs_dir.rglob(RESULTS)}


@pytest.mark.slow
def test_cold_items_are_a_group_of_their_own(workspace, run_study, smaller):
    before, cold = (s.tables[0] for s in run_study(STUDIES["cold-items"], workspace))
    columns = [*before.columns[2:], *before.columns[:2]]
    assert columns == [
        "SASRec, ids",
        "from scratch",
        "pre-trained",
        "pre-trained, without item bias",
        "pre-trained, not fine-tuned",
        "popularity",
        "content nearest neighbour",
    ]
    for table in (before, cold):
        users = {}
        for row in table.rows:
            title, _, group = row.name.partition(": ")
            users.setdefault(title, []).append(int(group.split("(")[1].removesuffix(" users)")))
        assert len(users) == 4
        assert len({sum(counts) for counts in users.values()}) == 1
    [row] = [row for row in cold.rows if "training data: 0 (" in row.name]
    assert row.cells[0].estimate.value == 0  # popularity ranks what nobody bought last
