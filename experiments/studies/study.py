"""What the studies have in common: how one is described, and the rows of this project's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from experiments.cells import ABSENT, Way
from experiments.figures import draw_curves, read_curve
from experiments.report import Cell, Figure, Section
from experiments.runs import Outcomes, Spec
from experiments.statistics import estimate, user_metrics
from experiments.workspace import Workspace
from mmm4rec.run_folder import Echo

METRIC = "ndcg@10"
CUTOFF = 10
COLUMNS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50")  # of a table of ways
SERVED = "served"  # below the folder of all runs: trained models under other data settings


def _prepare_nothing(workspace: Workspace, echo: Echo) -> None:
    """Need no other data than the world's."""


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        title: for people.
        specs: returns the runs that it needs, for all downstream domains of a world and so many
            seeds, and does nothing.
        sections: returns what it shows of the prepared domains, given what came of those runs.
        prepare: makes what the runs need beside the world's prepared domains; twice is as once.
    """

    title: str
    specs: Callable[[Workspace, int], list[Spec]]
    sections: Callable[[Workspace, int, Outcomes], list[Section]]
    prepare: Callable[[Workspace, Echo], None] = _prepare_nothing


def user_values(way: Way, outcomes: Outcomes) -> list[Tensor]:
    """Return the metric of each test user, one tensor per run that succeeded; none twice."""
    folders = dict.fromkeys(run.folder for run in way.runs(outcomes).values())
    return read_values(folders)


def read_values(folders: dict[Path, None] | list[Path]) -> list[Tensor]:
    """Return the metric of each test user, one tensor per folder with ranks."""
    return [user_metrics(folder, (CUTOFF,))[METRIC] for folder in folders]


def value_cell(values: list[Tensor]) -> Cell:
    """Return the mean over users and seeds with its interval."""
    if not values:
        return Cell(ABSENT)
    found = estimate(values)
    return Cell(f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]", estimate=found)


def figure_path(workspace: Workspace, study: str, name: str) -> Path:
    """Return where a picture of a study's report goes; its folder is made."""
    folder = workspace.reports_dir / study
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"


def curves_figure(path: Path, domain: str, ways: list[Way], outcomes: Outcomes) -> list[Figure]:
    """Draw the validation curves of all runs that succeeded; nothing where none did."""
    curves = {
        way.name: [read_curve(run.folder, f"val/{METRIC}") for run in runs.values()]
        for way in ways
        if (runs := way.runs(outcomes))
    }
    if not curves:
        return []
    draw_curves({domain: curves}, f"val/{METRIC}", path)
    return [Figure(f"{domain}: convergence", path, "Validation NDCG@10 by epoch of fine-tuning.")]
