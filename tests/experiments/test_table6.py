from dataclasses import replace

import pytest

from experiments import table6
from experiments.cells import specs_of_domains
from experiments.expected import Published
from experiments.runs import Outcome, settings_of

ROWS = [
    "full",
    "without pre-training",
    "without time",
    "without shared weights",
    "without learnable filter",
    "without adaptive filter",
    "two layers",
    "attention instead of SSD",
    "without item bias",
]


@pytest.fixture
def outcomes(workspace, finished):
    def ranks(at):
        return [(7 * user * (at + 1)) % (60 + at) for user in range(50)]

    specs = specs_of_domains(table6.ways, workspace, 1)
    return {spec: Outcome(finished(str(at), ranks(at))) for at, spec in enumerate(specs)}


def test_every_row_differs_from_the_full_model_in_one_thing(workspace):
    ways = table6.ways(workspace, "MiniOffice", 1)
    assert [way.name for way in ways] == ROWS
    full = settings_of(ways[0].specs[0], workspace).model.model_dump()
    for way in ways[2:]:
        own = settings_of(way.specs[0], workspace).model.model_dump()
        assert len([key for key in own if own[key] != full[key]]) == 1, way.name
    assert ways[1].specs[0] == replace(ways[0].specs[0], source=None)


def test_every_variant_is_pre_trained_as_that_variant(workspace):
    ways = table6.ways(workspace, "MiniOffice", 1)
    for way in ways[2:8]:
        (spec,) = way.specs
        assert spec.source.presets == spec.presets != ()
    assert len({way.specs[0].source for way in ways if way.specs[0].source}) == 7
    assert ways[8].specs[0].source == ways[0].specs[0].source


def test_the_reference_is_the_full_model(workspace, outcomes):
    (section,) = table6.sections(workspace, 1, outcomes)
    (table,) = section.tables
    assert [row.name for row in table.rows] == ROWS
    assert [row.is_reference for row in table.rows] == [True] + [False] * 8
    assert all(cell.adjusted_p >= cell.comparison.p for row in table.rows[1:] for cell in row.cells)
    assert "was pre-trained as that variant" in table.notes[0]


def test_from_scratch_only_where_pre_training_is_impossible(workspace, monkeypatch, finished):
    quoted = Published(0.1, 0.01, "a table", "v3")
    monkeypatch.setattr("experiments.table6.find_published", lambda *key: quoted)
    wanting = replace(workspace, pretraining=("Nowhere",))
    specs = specs_of_domains(table6.ways, wanting, 1)
    assert all(spec.source is None for spec in specs)
    outcomes = {s: Outcome(finished(f"s{at}", range(50))) for at, s in enumerate(specs)}
    (section,) = table6.sections(wanting, 1, outcomes)
    (table,) = section.tables
    assert [row.name for row in table.rows] == [ROWS[0], *ROWS[2:]]
    assert "is from scratch" in table.notes[0]
    # The published numbers are of pre-trained models: nothing to compare with.
    assert all(cell.published is None for row in table.rows for cell in row.cells)


def test_without_timestamps_the_rows_on_time_say_nothing(workspace, outcomes, monkeypatch):
    manifest = workspace.manifest("MiniOffice").model_copy(update={"has_time": False})
    monkeypatch.setattr(type(workspace), "manifest", lambda self, domain: manifest)
    (section,) = table6.sections(workspace, 1, outcomes)
    assert section.tables[0].notes[1].startswith("MiniOffice has no timestamps: ")
