from dataclasses import replace

from experiments import main_table, table5
from experiments.cells import COMPARED, specs_of_domains
from experiments.runs import Outcome, settings_of


def test_every_model_knows_ids_features_or_both(workspace):
    ways = main_table.ways(workspace, "MiniOffice", 2)
    names = [way.name for way in ways]
    assert len(names) == len(set(names)) == 2 + 5 * 3 + 4
    for preset in COMPARED.values():
        known = [way for way in ways if way.specs[0].presets == (preset,)]
        configs = [settings_of(way.specs[0], workspace) for way in known]
        assert {config.model.name for config in configs} == {preset}
        assert [c.model.item_inputs for c in configs] == ["ids", "features", "both"]
        assert [[spec.seed for spec in way.specs] for way in known] == [[0, 1]] * 3
    configs = [settings_of(way.specs[0], workspace) for way in ways]
    assert all(config.data == configs[0].data for config in configs)  # the same batches
    assert all(config.trainer == configs[0].trainer for config in configs)


def test_its_own_rows_are_the_runs_of_the_other_tables(workspace):
    own = [way.specs[0] for way in main_table.ways(workspace, "MiniOffice", 1)[-4:]]
    assert set(own) == set(specs_of_domains(table5.ways, workspace, 1))


def test_the_reference_is_the_pre_trained_model_where_there_is_one(workspace, finished):
    for world, reference in (
        (workspace, "MMM4Rec, pre-trained, with item bias"),
        (replace(workspace, pretraining=("Nowhere",)), "MMM4Rec, from scratch, with item bias"),
    ):
        specs = specs_of_domains(main_table.ways, world, 1)
        outcomes = {
            spec: Outcome(finished(f"{reference}{at}", [(at * user) % 80 for user in range(40)]))
            for at, spec in enumerate(specs)
        }
        (section,) = main_table.sections(world, 1, outcomes)
        (table,) = section.tables
        assert [row.name for row in table.rows if row.is_reference] == [reference]
        popularity = table.rows[0]
        assert popularity.name == "popularity"
        run = outcomes[specs[0]].run
        assert run.folder.name == f"{reference}0"
        assert popularity.cells[0].estimate.value == 1.0  # rank 0 for everyone
