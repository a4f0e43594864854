"""A third modality through the same shared TiSSD: the brand, and where in the chain it stands."""

from __future__ import annotations

from functools import partial

from experiments.cells import Way, failures, metric_rows, mmm4rec, specs_of_domains
from experiments.report import Section, Table
from experiments.runs import Outcomes
from experiments.studies.brand import BRAND, add_brands, with_brand_dir
from experiments.studies.study import COLUMNS, Study, curves_figure, figure_path
from experiments.workspace import Workspace

NAME = "third-modality"
STREAMS = (
    ("text", "image"),
    ("text", "image", BRAND),
    (BRAND, "text", "image"),
    ("text", BRAND),
    ("image", BRAND),
)
REFERENCE = ", ".join(STREAMS[0])


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain, all on the copies that have the brand."""
    data_dir = f"data.data_dir={with_brand_dir(workspace)}"
    return [
        mmm4rec(
            ", ".join(streams),
            workspace,
            domain,
            seeds,
            pretrained=workspace.can_pretrain,
            both=(data_dir, f"data.modalities=[{', '.join(streams)}]"),
        )
        for streams in STREAMS
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    rows = ways(workspace, domain, seeds)
    table = Table(
        f"{domain}: modalities, in the order of fusion",
        list(COLUMNS),
        metric_rows(
            rows, outcomes, COLUMNS, reference=REFERENCE, published=lambda way, metric: None
        ),
        [
            "The brand is hashed words of the brand's name, of the items that have one; other "
            "vectors come in by mmm4rec add-features. In the miniature Amazon the brand says "
            "nothing about who buys what: there the row tells what a useless stream costs.",
            f"Paired tests against: {REFERENCE}; Holm's correction over the rows of a column.",
            *failures(rows, outcomes),
        ],
    )
    path = figure_path(workspace, NAME, domain)
    return Section(domain, "", [table], curves_figure(path, domain, rows, outcomes))


STUDY = Study("A third modality", partial(specs_of_domains, ways), sections, add_brands)
