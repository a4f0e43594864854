from dataclasses import replace

import pytest
from PIL import Image

from experiments import table5
from experiments.cells import specs_of_domains
from experiments.expected import Published
from experiments.runs import Outcome

NAMES = [
    "pre-trained, with item bias",
    "pre-trained, without item bias",
    "from scratch, with item bias",
    "from scratch, without item bias",
]


def of_a_run(best):
    return {
        "best_epoch": best,
        "best_step": 11 * best,
        "convergence": {
            "95%": {"epoch": best - 2, "step": 11 * best - 22, "seconds": 0.5},
            "99%": {"epoch": best - 1, "step": 11 * best - 11, "seconds": 0.75},
        },
        "seconds_per_epoch": 0.25,
        "seconds_to_best": best / 4,
    }


@pytest.fixture
def outcomes(workspace, finished):
    found = {}
    for at, spec in enumerate(specs_of_domains(table5.ways, workspace, 2)):
        ranks = [(user * (at + 1)) % 70 for user in range(50)]
        found[spec] = Outcome(finished(str(at), ranks, [0.1, 0.3, 0.2], **of_a_run(5 + at)))
    return found


def test_the_rows_are_pre_trained_or_not_with_item_bias_or_without(workspace):
    ways = table5.ways(workspace, "MiniOffice", 3)
    assert [way.name for way in ways] == NAMES
    specs = specs_of_domains(table5.ways, workspace, 3)
    assert len(set(specs)) == len(specs) == 12
    assert len({spec.source for spec in specs if spec.source}) == 3  # shared by both biases


def test_without_the_pre_training_domains_all_is_from_scratch(workspace):
    wanting = replace(workspace, pretraining=("MiniFood", "Nowhere"))
    assert [way.name for way in table5.ways(wanting, "MiniOffice", 1)] == NAMES[2:]


def test_the_cells_are_what_the_runs_say(workspace, outcomes):
    sections = table5.sections(workspace, 2, outcomes)
    assert [section.title for section in sections] == ["Convergence", "MiniOffice"]
    efficiency, accuracy = sections[1].tables
    assert [row.name for row in efficiency.rows] == NAMES  # nothing is published of a miniature
    cells = dict(zip(efficiency.columns, efficiency.rows[1].cells, strict=True))
    assert {column: cell.text for column, cell in cells.items()} == {
        "epochs": "7.5 (7, 8)",
        "steps": "82.5 (77, 88)",
        "epochs to 95 %": "5.5 (5, 6)",
        "steps to 95 %": "60.5 (55, 66)",
        "epochs to 99 %": "6.5 (6, 7)",
        "steps to 99 %": "71.5 (66, 77)",
        "seconds per epoch": "0.25 (0.25, 0.25)",
        "seconds to best": "1.88 (1.75, 2)",
    }
    assert accuracy.columns == list(table5.METRICS)
    assert [row.is_reference for row in accuracy.rows] == [True, False, False, False]


def test_the_curves_are_those_of_every_run(workspace, outcomes):
    figure = table5.sections(workspace, 2, outcomes)[0].figures[0]
    assert figure.path == workspace.reports_dir / "table5" / "convergence.png"
    with Image.open(figure.path) as picture:
        assert picture.width >= 400


def test_published_rows_stand_beside_those_of_a_known_domain(workspace, outcomes, monkeypatch):
    published = {"MISSRec": {"epochs": Published(76, None, "a table", "v3")}}
    monkeypatch.setattr("experiments.cells.published_rows", lambda table, domain: published)
    rows = table5.sections(workspace, 2, outcomes)[1].tables[0].rows
    assert [(row.name, row.source) for row in rows[4:]] == [("MISSRec", "published")]
    assert [cell.text for cell in rows[4].cells] == ["76", *["-"] * 7]


def test_a_run_that_failed_is_told_and_leaves_its_cells_empty(workspace, outcomes):
    for spec in outcomes:
        if spec.name == NAMES[0]:
            outcomes[spec] = Outcome(failure="it diverged")
    table = table5.sections(workspace, 2, outcomes)[1].tables[0]
    assert {cell.text for cell in table.rows[0].cells} == {"-"}
    told = [note for note in table.notes if note.startswith("Failed: ")]
    assert told == [f"Failed: MiniOffice: {NAMES[0]}, seed {seed}: it diverged" for seed in (0, 1)]
