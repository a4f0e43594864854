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
