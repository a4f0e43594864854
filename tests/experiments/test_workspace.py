import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.workspace import ensure_data, open_workspace
from mmm4rec.errors import ConfigError


def test_the_worlds_have_their_domains_and_folders(tmp_path):
    mini = open_workspace("mini", tmp_path)
    assert mini.pretraining == ("MiniFood", "MiniHome", "MiniMovies")
    assert mini.downstream == ("MiniOffice", "MiniArts")
    assert mini.data_dir == tmp_path / "demo" / "data"  # shared with `mmm4rec demo`
    amazon = open_workspace("amazon", tmp_path)
    assert amazon.pretraining == ("Food", "CDs", "Kindle", "Movies", "Home")
    assert amazon.downstream == ("Scientific", "Pantry", "Instruments", "Arts", "Office")
    assert (amazon.data_dir, amazon.runs_dir) == (tmp_path / "data", tmp_path / "runs")
    assert amazon.reports_dir == tmp_path / "reports" / "amazon"
    assert list(tmp_path.iterdir()) == []


def test_downstream_domains_are_chosen_by_any_of_their_names():
    chosen = open_workspace("amazon", Path(), ["Office_Products", "Scientific"])
    assert chosen.downstream == ("Scientific", "Office")
    assert len(chosen.pretraining) == 5


@pytest.mark.parametrize(
    ("world", "domains", "message"),
    [
        ("big", None, "no world 'big': allowed are mini, amazon. Next: --world amazon"),
        ("mini", ["Office"], "--domain Office: allowed are MiniOffice, MiniArts, the downstream"),
        ("amazon", ["Food"], "--domain Food: allowed are Scientific, Pantry, Instruments, Arts,"),
    ],
)
def test_what_a_world_does_not_have(world, domains, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_workspace(world, Path(), domains)


def test_what_is_not_prepared_is_named_with_the_command_that_makes_it(workspace):
    assert (workspace.gaps(), workspace.ready, workspace.can_pretrain) == (
        [],
        ["MiniOffice"],
        True,
    )
    wanting = replace(
        workspace, pretraining=("MiniFood", "Home"), downstream=("MiniOffice", "Arts")
    )
    assert (wanting.ready, wanting.can_pretrain) == (["MiniOffice"], False)
    where = f"--data-dir {workspace.data_dir}"
    assert wanting.gaps() == [
        f"Arts is not prepared and is left out. Next: mmm4rec prepare --domain Arts {where}",
        "Pre-trained rows are left out: Home of the domains to pre-train on is not prepared. "
        f"Next: mmm4rec prepare --domain Home {where}",
    ]


def test_only_the_miniature_is_made(tmp_path):
    ensure_data(open_workspace("amazon", tmp_path), print)
    assert list(tmp_path.iterdir()) == []
