"""Who is served well: by popularity of the target, length of the history, image or none.

Two splits: as the domain is, and with a share of the items made cold, which nobody has bought
before the test.
"""

from __future__ import annotations

from torch import Tensor

from experiments.cells import Way, failures, specs_of
from experiments.figures import Line, draw_lines
from experiments.groups import HISTORY, POPULARITY, Grouping, check_users, group_users, range_names
from experiments.report import Figure, Row, Section, Table
from experiments.runs import Outcomes, Spec, Untrained, data_of, settings_of
from experiments.statistics import estimate
from experiments.studies.study import Study, figure_path, read_values, trained, value_cell
from experiments.workspace import Workspace

NAME = "cold-items"
COLD_SHARE = 0.2
SPLITS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    f"{COLD_SHARE:.0%} of the items cold": (f"data.cold_share={COLD_SHARE}",),
}
UNTRAINED: dict[str, Untrained] = {
    "popularity": "popularity",
    "content nearest neighbour": "content",
}
BY_IDS = "SASRec, ids"
STARTS = {"popularity": POPULARITY, "history": HISTORY}  # groupings by a number
NOTES = [
    "Full ranking over the whole catalogue, test NDCG@10 of the users of each group, 95 % "
    "intervals. A target that is 0 times in the training data is a cold item.",
    "A cold item stands in the catalogue while models are trained, as one that is listed and not "
    "yet sold: the loss of fine-tuning counts it among the wrong answers.",
]


def ways(workspace: Workspace, domain: str, seeds: int, settings: tuple[str, ...]) -> list[Way]:
    """Return the models that are compared, on one split."""
    starts = {"from scratch": False, **({"pre-trained": True} if workspace.can_pretrain else {})}
    untrained = [
        Way(name, (Spec(name, "evaluate", (domain,), settings=settings, untrained=kind),) * seeds)
        for name, kind in UNTRAINED.items()
    ]
    by_ids = [
        Spec(BY_IDS, "finetune", (domain,), ("sasrec",), ("model.item_inputs=ids", *settings), seed)
        for seed in range(seeds)
    ]
    return [
        *untrained,
        Way(BY_IDS, tuple(by_ids)),
        *(
            trained(name, workspace, domain, seeds, pretrained=start, after=settings)
            for name, start in starts.items()
        ),
    ]


def specs(workspace: Workspace, seeds: int) -> list[Spec]:
    """Return the runs of all downstream domains, on both splits."""
    return [
        spec
        for domain in workspace.downstream
        for settings in SPLITS.values()
        for spec in specs_of(ways(workspace, domain, seeds, settings))
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
    measured = {
        key: {way.name: _by_group(way, grouping, outcomes) for way in made}
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
    table = Table(f"{title}: by group", [way.name for way in made], rows, notes)
    path = figure_path(workspace, NAME, f"{domain}-{list(SPLITS).index(split)}")
    panels = {
        f"by {key}": {
            way: line for way, by_group in measured[key].items() if (line := _line(key, by_group))
        }
        for key in STARTS
    }
    draw_lines(
        panels,
        x_label="purchases: of the target in training; before the target",
        y_label="test NDCG@10",
        path=path,
    )
    return Section(title, "", [table], [Figure(title, path, "Each point is a range's beginning.")])


def _by_group(way: Way, grouping: Grouping, outcomes: Outcomes) -> dict[str, list[Tensor]]:
    """Return the metric of the users of each group, one tensor per run that succeeded."""
    folders = list(dict.fromkeys(run.folder for run in way.runs(outcomes).values()))
    for folder in folders:
        check_users(folder, grouping)
    by_group: dict[str, list[Tensor]] = {}
    for values_U in read_values(folders):
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
