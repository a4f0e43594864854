"""What each difference from the released code does to the results, one switch at a time."""

from __future__ import annotations

from dataclasses import replace

from experiments.cells import ABSENT, Way, failures, metric_rows, mmm4rec, specs_of
from experiments.report import Cell, Figure, Row, Section, Table
from experiments.runs import Outcomes, Spec
from experiments.studies.effects import draw_effects
from experiments.studies.study import METRIC, Study, figure_path
from experiments.workspace import Workspace
from mmm4rec.config import OFFICIAL, Config

NAME = "fidelity"
CORRECTED, WHOLE = "corrected", "fidelity: official"
# Gradients are summed or averaged over accumulated batches: measured where there are some.
ACCUMULATION = "optimizer.accumulation"
ACCUMULATED = f"{CORRECTED}, 4 batches accumulated"
ACCUMULATING = "trainer.accumulate_grad_batches=4"
# What a switch cannot be without: raw seconds are read through a norm.
WITH = {ACCUMULATION: (ACCUMULATING,), "model.time_gaps": ("model.time_norm=real_positions",)}
STARTS = {False: "from scratch", True: "pre-trained"}
NOTES = [
    "Each row is the corrected model with one field set to what the authors' released code "
    "computes, in pre-training and in fine-tuning. The fields of the preparation of data are left "
    "out: they change the data, not the training.",
    "data.target_time=leaked leaves the target's time behind the last item. The corrected time "
    "path masks what stands there, so that alone it changes nothing.",
    "model.time_gaps=seconds: with model.time_norm=real_positions, without which it diverges.",
    f"{ACCUMULATION}: against the corrected model that also accumulates 4 batches.",
    "Holm's correction over the rows of a column.",
]


def switches() -> dict[str, str]:
    """Return each official value that concerns training and differs, as `--set` takes it."""
    corrected = Config().as_dict()
    return {
        f"{section}.{field}": str(value)
        for section, fields in OFFICIAL.items()
        if section != "prepare"
        for field, value in fields.items()
        if corrected[section][field] != value
    }


def ways(workspace: Workspace, domain: str, seeds: int, *, pretrained: bool) -> list[Way]:
    """Return the rows of one domain: corrected first, then one per switch, then all together."""

    def way(name: str, *settings: str) -> Way:
        return mmm4rec(name, workspace, domain, seeds, pretrained=pretrained, both=settings)

    rows = [way(CORRECTED)]
    for field, value in switches().items():
        extra = WITH.get(field, ())
        rows.append(way(f"{field}={value}", f"{field}={value}", *extra))
    return [*rows, way(WHOLE, "fidelity=official"), way(ACCUMULATED, ACCUMULATING)]


def specs(workspace: Workspace, seeds: int) -> list[Spec]:
    """Return the runs of all downstream domains."""
    return [
        spec
        for domain in workspace.downstream
        for pretrained in starts(workspace)
        for spec in specs_of(ways(workspace, domain, seeds, pretrained=pretrained))
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


def starts(workspace: Workspace) -> tuple[bool, ...]:
    """Return where fine-tuning can start from: whether it is pre-trained."""
    return (False, True) if workspace.can_pretrain else (False,)


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    made = {start: ways(workspace, domain, seeds, pretrained=start) for start in starts(workspace)}
    parts = {start: _compared(rows, outcomes) for start, rows in made.items()}
    names = [row.name for row in parts[False]]
    table = Table(
        f"{domain}: test NDCG@10, and what one official value does to it",
        [column for start in parts for column in (STARTS[start], f"effect, {STARTS[start]}")],
        [
            Row(
                name,
                [cell for rows in parts.values() for cell in _pair(rows[at].cells[0])],
                is_reference=name == CORRECTED,
            )
            for at, name in enumerate(names)
        ],
        [*NOTES, *failures([way for rows in made.values() for way in rows], outcomes)],
    )
    effects = {
        STARTS[start]: {
            row.name: row.cells[0].comparison for row in rows if row.cells[0].comparison
        }
        for start, rows in parts.items()
    }
    if not any(effects.values()):
        return Section(domain, "", [table], [])
    path = figure_path(workspace, NAME, domain)
    draw_effects(effects, "change of test NDCG@10", path)
    figure = Figure(f"{domain}: what each official value does", path, NOTES[0])
    return Section(domain, "", [table], [figure])


def _compared(rows: list[Way], outcomes: Outcomes) -> list[Row]:
    """Compare each row with the corrected model that accumulates as many batches."""
    accumulating = {ACCUMULATED, *(way.name for way in rows if way.name.startswith(ACCUMULATION))}

    def compare(names: set[str], reference: str) -> list[Row]:
        chosen = [way for way in rows if way.name in names]
        return metric_rows(
            chosen, outcomes, (METRIC,), reference=reference, published=lambda way, metric: None
        )

    others = {way.name for way in rows} - accumulating
    return compare(others, CORRECTED) + compare(accumulating, ACCUMULATED)


def _pair(cell: Cell) -> list[Cell]:
    """Return a cell with the value and one with the effect."""
    found = cell.comparison
    if found is None:
        return [cell, Cell(ABSENT)]
    return [
        replace(cell, comparison=None, adjusted_p=None),
        Cell("", comparison=found, adjusted_p=cell.adjusted_p),
    ]


STUDY = Study("Differences from the released code", specs, sections)
