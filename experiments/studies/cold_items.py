"""Who is served well: by popularity of the target, length of the history, image or none.

Two splits: as the domain is, and with a share of the items made cold, which nobody has bought
before the test.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from experiments.cells import (
    UNTRAINED,
    Way,
    compared,
    failures,
    mmm4rec,
    specs_of,
    untrained,
)
from experiments.figures import Line, draw_lines
from experiments.groups import HISTORY, POPULARITY, Grouping, check_users, group_users, range_names
from experiments.report import Figure, Row, Section, Table
from experiments.runs import Outcomes, Spec, data_of, settings_of
from experiments.statistics import estimate
from experiments.studies.evaluating import evaluate_cached, with_settings
from experiments.studies.study import (
    SERVED,
    Study,
    figure_path,
    read_values,
    value_cell,
)
from experiments.workspace import Workspace
from mmm4rec.checkpoint import read_checkpoint

NAME = "cold-items"
COLD_SHARE = 0.2
SPLITS = {"as it is": 0.0, f"{COLD_SHARE:.0%} of the items cold": COLD_SHARE}
SCRATCH, PRETRAINED = "from scratch", "pre-trained"
WITHOUT_BIAS, NOT_FINETUNED = "pre-trained, without item bias", "pre-trained, not fine-tuned"
STARTS = {"popularity": POPULARITY, "history": HISTORY}  # groupings by a number
NOTES = [
    "Full ranking over the whole catalogue, test NDCG@10 of the users of each group, 95 % "
    "intervals. A target that is 0 times in the training data is a cold item.",
    "A cold item stands in the catalogue while models are trained, as one that is listed and not "
    "yet sold: the loss of fine-tuning counts it among the wrong answers. A model that is not "
    "fine-tuned knows it as well as any other item.",
]


def ways(workspace: Workspace, domain: str, seeds: int, cold_share: float) -> list[Way]:
    """Return the models that are compared, on one split."""
    settings = (f"data.cold_share={cold_share}",) if cold_share else ()

    def way(name: str, *, item_bias: bool = True) -> Way:
        start = name != SCRATCH
        return mmm4rec(
            name, workspace, domain, seeds, pretrained=start, item_bias=item_bias, after=settings
        )

    pretrained = [way(PRETRAINED), way(WITHOUT_BIAS, item_bias=False)]
    return [
        *(untrained(kind, domain, seeds, settings) for kind in UNTRAINED),
        compared("SASRec", "ids", domain, seeds, settings),
        way(SCRATCH),
        *(pretrained if workspace.can_pretrain else []),
    ]


def specs(workspace: Workspace, seeds: int) -> list[Spec]:
    """Return the runs of all downstream domains, on both splits."""
    return [
        spec
        for domain in workspace.downstream
        for cold_share in SPLITS.values()
        for spec in specs_of(ways(workspace, domain, seeds, cold_share))
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain and split."""
    return [
        _section(workspace, domain, split, seeds, outcomes)
        for domain in workspace.ready
        for split in SPLITS
    ]


def _section(
    workspace: Workspace, domain: str, split: str, seeds: int, outcomes: Outcomes
) -> Section:
    made = ways(workspace, domain, seeds, SPLITS[split])
    spec = made[0].specs[0]
    groupings = group_users(data_of(spec, settings_of(spec, workspace)))
    folders = {way.name: _folders(way, outcomes) for way in made}
    if workspace.can_pretrain:
        folders[NOT_FINETUNED] = _not_finetuned(workspace, domain, made[-1], split, outcomes)
    measured = {
        key: {name: _by_group(ranked, grouping) for name, ranked in folders.items()}
        for key, grouping in groupings.items()
    }
    title = f"{domain}, {split}"
    rows = [
        Row(
            f"{grouping.title}: {name} ({len(users_U)} users)",
            [value_cell(by_group.get(name, [])) for by_group in measured[key].values()],
        )
        for key, grouping in groupings.items()
        for name, users_U in grouping.split(grouping.users_U).items()
    ]
    notes = [*NOTES, *failures(made, outcomes)]
    table = Table(f"{title}: by group", list(folders), rows, notes)
    path = figure_path(workspace, NAME, f"{domain}-{list(SPLITS).index(split)}")
    panels = {
        groupings[key].title: {
            name: line for name, by_group in measured[key].items() if (line := _line(key, by_group))
        }
        for key in STARTS
    }
    draw_lines(
        panels,
        x_label="where the range of the group begins",
        y_label="test NDCG@10",
        path=path,
    )
    return Section(title, "", [table], [Figure(title, path, NOTES[0])])


def _folders(way: Way, outcomes: Outcomes) -> list[Path]:
    return list(dict.fromkeys(run.folder for run in way.runs(outcomes).values()))


def _not_finetuned(
    workspace: Workspace, domain: str, way: Way, split: str, outcomes: Outcomes
) -> list[Path]:
    """Rank with the models that the fine-tuning started from: nobody told them the items."""
    folders = []
    for spec in way.specs:
        run = outcomes[spec.source].run if spec.source else None
        if run:
            checkpoint = read_checkpoint(run.folder)
            config = with_settings(checkpoint.config, cold_share=SPLITS[split])
            served = workspace.runs_dir / SERVED
            folders.append(evaluate_cached(config, checkpoint, domain, served).folder)
    return folders


def _by_group(folders: list[Path], grouping: Grouping) -> dict[str, list[Tensor]]:
    """Return the metric of the users of each group, one tensor per folder with ranks."""
    by_group: dict[str, list[Tensor]] = {}
    for folder, values_U in zip(folders, read_values(folders), strict=True):
        check_users(folder, grouping)
        for name, part_U in grouping.split(values_U).items():
            by_group.setdefault(name, []).append(part_U)
    return by_group


def _line(key: str, by_group: dict[str, list[Tensor]]) -> Line:
    starts = STARTS[key]
    return [
        (start, estimate(by_group[name]))
        for start, name in zip(starts, range_names(starts), strict=True)
        if name in by_group
    ]


STUDY = Study("Cold items, and who is served well", specs, sections)
