"""Rows of a table from runs: estimates over seeds, paired tests against the reference, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from experiments.expected import Published, published_rows, verdict
from experiments.report import Cell, Row, format_number
from experiments.runs import Outcomes, Spec, Untrained, pretraining
from experiments.statistics import compare, estimate, holm, user_metrics
from experiments.workspace import Workspace
from mmm4rec.runner import Run

CUTOFFS = (10, 20, 50)
ABSENT = "-"
UNTRAINED: dict[Untrained, str] = {  # to the name of the row
    "popularity": "popularity",
    "content": "content nearest neighbour",
}
COMPARED = {  # to the preset
    "SASRec": "sasrec",
    "GRU4Rec": "gru4rec",
    "BSARec": "bsarec",
    "Mamba4Rec": "mamba4rec",
    "TiM4Rec": "tim4rec",
}

FindPublished = Callable[[str, str], Published | None]  # by name of the way and column


@dataclass(frozen=True)
class Way:
    """What a row shows: the same run under each seed.

    Attributes:
        name: of the row.
        specs: one per seed; without training the same one for every seed.
    """

    name: str
    specs: tuple[Spec, ...]

    def runs(self, outcomes: Outcomes) -> dict[int, Run]:
        """Return the runs that succeeded by their place among the seeds."""
        found = {at: outcomes[spec].run for at, spec in enumerate(self.specs)}
        return {at: run for at, run in found.items() if run is not None}

    def failures(self, outcomes: Outcomes) -> list[str]:
        """Say which runs failed and why."""
        failed = {spec: outcomes[spec].failure for spec in self.specs}
        return [f"{spec.label}: {reason}" for spec, reason in failed.items() if reason]


def mmm4rec(
    name: str,
    workspace: Workspace,
    domain: str,
    seeds: int,
    *,
    pretrained: bool,
    item_bias: bool = True,
    presets: tuple[str, ...] = (),
    both: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Way:
    """Return a row of this project's model, fine-tuned on a domain.

    Args:
        name: of the row.
        workspace: where.
        domain: a downstream domain.
        seeds: how many; a pre-training and what starts from it have the same seed.
        pretrained: whether it starts from a pre-training on all pre-training domains.
        item_bias: whether fine-tuning learns a vector per item.
        presets: of pre-training and fine-tuning.
        both: settings of both.
        before: settings of pre-training alone.
        after: settings of fine-tuning alone.
    """
    variant = ", ".join((*presets, *both, *before))
    title = f"pre-training ({variant})" if variant else "pre-training"
    settings = (f"model.use_item_bias={str(item_bias).lower()}", *both, *after)

    def spec(seed: int) -> Spec:
        source = (
            pretraining(workspace, title, seed, presets, (*both, *before)) if pretrained else None
        )
        return Spec(name, "finetune", (domain,), presets, settings, seed, source)

    return Way(name, tuple(map(spec, range(seeds))))


def untrained(kind: Untrained, domain: str, seeds: int, settings: tuple[str, ...] = ()) -> Way:
    """Return the row of a model without training, the same run under every seed."""
    spec = Spec(UNTRAINED[kind], "evaluate", (domain,), settings=settings, untrained=kind)
    return Way(UNTRAINED[kind], (spec,) * seeds)


def compared(
    model: str, known: str, domain: str, seeds: int, settings: tuple[str, ...] = ()
) -> Way:
    """Return the row of a model that this one is compared with.

    Args:
        model: a key of `COMPARED`.
        known: what it knows of an item, as `model.item_inputs`.
        domain: a downstream domain.
        seeds: how many.
        settings: over its preset.
    """
    row = f"{model}, {known}"
    given = (f"model.item_inputs={known}", *settings)
    specs = (
        Spec(row, "finetune", (domain,), (COMPARED[model],), given, seed) for seed in range(seeds)
    )
    return Way(row, tuple(specs))


def specs_of(ways: Iterable[Way]) -> list[Spec]:
    """Return the runs of all rows."""
    return [spec for way in ways for spec in way.specs]


def specs_of_domains(
    ways: Callable[[Workspace, str, int], list[Way]], workspace: Workspace, seeds: int
) -> list[Spec]:
    """Return the runs of the rows of all downstream domains."""
    return specs_of(
        way for domain in workspace.downstream for way in ways(workspace, domain, seeds)
    )


def failures(ways: Iterable[Way], outcomes: Outcomes) -> list[str]:
    """Return a note on every run that failed."""
    lines = [line for way in ways for line in way.failures(outcomes)]
    return [f"Failed: {line}" for line in dict.fromkeys(lines)]


def metric_rows(
    ways: list[Way],
    outcomes: Outcomes,
    metrics: tuple[str, ...],
    *,
    reference: str,
    published: FindPublished,
) -> list[Row]:
    """Return one row per way, with test metrics averaged over users and seeds.

    Every other row is compared with the reference by users and seeds in pairs; Holm's correction
    is over the rows of a column.

    Args:
        ways: the rows; a way whose runs all failed has empty cells.
        outcomes: of the runs.
        metrics: the columns, such as `recall@10`.
        reference: name of a way.
        published: what has been published for a way and a column.
    """
    measured = {way.name: _by_seed(way, outcomes) for way in ways}
    columns = [
        _correct(
            [
                _metric_cell(
                    measured[way.name],
                    None if way.name == reference else measured.get(reference),
                    metric,
                    published(way.name, metric),
                )
                for way in ways
            ]
        )
        for metric in metrics
    ]
    return [
        Row(way.name, [column[at] for column in columns], is_reference=way.name == reference)
        for at, way in enumerate(ways)
    ]


def quoted_rows(
    table: str, domain: str, columns: tuple[str, ...], besides: Iterable[str] = ()
) -> list[Row]:
    """Return the published rows of a table that have a number in one of its columns.

    Args:
        table: a key of the published numbers.
        domain: likewise.
        columns: likewise, one per cell.
        besides: rows that are measured, and have their published numbers in their cells.
    """
    measured = set(besides)
    return [
        _quoted_row(name, columns, numbers)
        for name, numbers in published_rows(table, domain).items()
        if name not in measured
        and not name.endswith(", %")  # a gain, and no value of its column
        and not numbers.keys().isdisjoint(columns)
    ]


def _quoted_row(name: str, columns: tuple[str, ...], numbers: dict[str, Published]) -> Row:
    cells = [
        Cell(format_number(numbers[column].value), published=numbers[column])
        if column in numbers
        else Cell(ABSENT)
        for column in columns
    ]
    return Row(name, cells, source="published")


def _by_seed(way: Way, outcomes: Outcomes) -> dict[int, dict[str, Tensor]]:
    runs = way.runs(outcomes)
    values = {folder: user_metrics(folder, CUTOFFS) for folder in {r.folder for r in runs.values()}}
    return {at: values[run.folder] for at, run in runs.items()}


def _metric_cell(
    own: dict[int, dict[str, Tensor]],
    reference: dict[int, dict[str, Tensor]] | None,
    metric: str,
    published: Published | None,
) -> Cell:
    if not own:
        return Cell(ABSENT, published=published)
    # Without training all seeds are one run, and no evidence of their own.
    distinct = {id(values[metric]): values[metric] for values in own.values()}
    found = estimate(list(distinct.values()))
    pairs = sorted(own.keys() & reference.keys()) if reference else []
    comparison = (
        compare([reference[at][metric] for at in pairs], [own[at][metric] for at in pairs])
        if reference and pairs
        else None
    )
    return Cell(
        f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]",
        estimate=found,
        published=published,
        comparison=comparison,
        verdict=verdict(found, published),
    )


def _correct(column: list[Cell]) -> list[Cell]:
    """Add the corrected p of each comparison in a column."""
    tested = [at for at, cell in enumerate(column) if cell.comparison]
    p_values = [cell.comparison.p for cell in column if cell.comparison]
    corrected = dict(zip(tested, holm(p_values) if p_values else [], strict=True))
    return [
        replace(cell, adjusted_p=corrected[at]) if at in corrected else cell
        for at, cell in enumerate(column)
    ]
