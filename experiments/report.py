"""A report as report.md and as report.html, which needs no other file and no network.

Whatever stands in a report is text: names of domains and runs come from folders and could hold
markup, so everything is escaped.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from experiments.expected import CANNOT_BE_TOLD, NOT_REPRODUCED, REPRODUCED, Published
from experiments.statistics import Comparison, Estimate
from mmm4rec.run_folder import atomic_file

MARKDOWN, HTML = "report.md", "report.html"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, CANNOT_BE_TOLD)
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
LEGEND = (
    "In a cell: the mean over users and seeds [95 % interval]; the published number with what is "
    "tolerated, and the verdict; the difference from the reference row [95 % interval] with the p "
    "of a paired test, corrected for the number of rows: * below 0.05, ** below 0.01, "
    "*** below 0.001. Rows marked as quoted were not measured here."
)
_STYLE = Path(__file__).with_name("report.css")
_INTERVAL = re.compile(r"\\\[([-+\d.,e]+, [-+\d.,e]+)\\\](?!\(|\\\[|:)")  # escaped


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows first: the value with its interval; empty: nothing.
        estimate: the same as numbers.
        published: what has been published in its place.
        comparison: with the reference row.
        adjusted_p: that of the comparison, corrected for many.
        verdict: on the published number; empty: none.
    """

    text: str
    estimate: Estimate | None = None
    published: Published | None = None
    comparison: Comparison | None = None
    adjusted_p: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: its first column.
        cells: one per column.
        is_reference: whether the other rows are compared with it.
        source: whether it was measured, or only quotes what has been published.
    """

    name: str
    cells: list[Cell]
    is_reference: bool = False
    source: Literal["measured", "published"] = "measured"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: without the one of the rows' names.
        rows: from top to bottom.
        notes: below it, a paragraph each.
    """

    title: str
    columns: list[str]
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        title: what it shows.
        path: a PNG, best in the folder of the report.
        note: below it.
    """

    title: str
    path: Path
    note: str


@dataclass(frozen=True)
class Section:
    """A part of a report: text, then tables, then pictures.

    Attributes:
        title: its heading.
        text: plain text, paragraphs divided by empty lines.
        tables: may be none.
        figures: may be none.
    """

    title: str
    text: str
    tables: list[Table]
    figures: list[Figure]


def write_report(
    folder: Path,
    title: str,
    sections: list[Section],
    *,
    command: str,
    environment: dict[str, Any],
) -> None:
    """Write report.md and report.html.

    Args:
        folder: where; made if it is not there.
        title: of the report.
        sections: its parts; the pictures must have been drawn.
        command: that made it.
        environment: the machine and the versions (see `mmm4rec.run_folder.environment`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(sections, command, environment)
    texts = {
        MARKDOWN: _markdown_report(folder, title, sections, facts),
        HTML: _html_report(title, sections, facts),
    }
    for name, text in texts.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def count_verdicts(tables: Iterable[Table]) -> Counter[str]:
    """Return how often each verdict was given on a measured cell."""
    return Counter(
        cell.verdict
        for table in tables
        for row in table.rows
        for cell in row.cells
        if row.source == "measured" and cell.verdict
    )


def format_number(value: float) -> str:
    """Write a published number as tables do.

    >>> [format_number(value) for value in (0.108, 1027413, 2.07)]
    ['0.1080', '1,027,413', '2.07']
    """
    if 0 < abs(value) < 1 and round(value, 4) == value:
        return f"{value:.4f}"
    return f"{value:,g}" if value != int(value) else f"{int(value):,}"


def _tables(sections: list[Section]) -> list[Table]:
    return [table for section in sections for table in section.tables]


def _cell_lines(cell: Cell, source: str) -> list[tuple[str, str]]:
    """Return what a cell shows as (kind, text)."""
    lines = [("value", cell.text)] if cell.text else []
    if source == "measured" and cell.published:
        lines.append(("published", _published_text(cell.published)))
    if cell.verdict:
        lines.append((cell.verdict.replace(" ", "-"), cell.verdict))
    if cell.comparison:
        lines.append(("comparison", _comparison_text(cell.comparison, cell.adjusted_p)))
    return lines


def _published_text(published: Published) -> str:
    tolerance = f" \u00b1 {published.tolerance:.4f}" if published.tolerance else ""
    return f"published {format_number(published.value)}{tolerance}"


def _comparison_text(comparison: Comparison, adjusted_p: float | None) -> str:
    difference = f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"
    if adjusted_p is None:
        return f"{difference}, p {comparison.p:.2g} (not corrected)"
    mark = next((f" {mark}" for limit, mark in MARKS if adjusted_p < limit), "")
    return f"{difference}, p {adjusted_p:.2g}{mark}"


def _row_tags(row: Row) -> list[str]:
    tags = ["reference"] if row.is_reference else []
    return tags + (["quoted"] if row.source == "published" else [])


def _notes(table: Table) -> list[str]:
    """Return the notes of a table and where its published numbers are from."""
    sources = dict.fromkeys(
        cell.published.source for row in table.rows for cell in row.cells if cell.published
    )
    numbered = [f"({at}) {source}" for at, source in enumerate(sources, start=1)]
    return [*table.notes, *([f"Published numbers: {' '.join(numbered)}"] if sources else [])]


def _summary(sections: list[Section]) -> str:
    counts = count_verdicts(_tables(sections))
    if not counts:
        return "Nothing that was measured here has been published with a number to compare with."
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{told}: of {counts.total()} measured numbers that have been published."


def _by_table(sections: list[Section]) -> Table | None:
    """Return the verdicts of each table, None where there are none or only one table has any."""
    counted = [(table.title, count_verdicts([table])) for table in _tables(sections)]
    rows = [
        Row(title, [Cell(str(counts[verdict])) for verdict in VERDICTS])
        for title, counts in counted
        if counts
    ]
    return Table("Verdicts", list(VERDICTS), rows, []) if len(rows) > 1 else None


def _facts(
    sections: list[Section], command: str, environment: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return what a report was made with as (name, text)."""
    seeds = {
        cell.estimate.seeds
        for table in _tables(sections)
        for row in table.rows
        for cell in row.cells
        if cell.estimate
    }
    return [
        ("command", command),
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        *([("seeds per cell", ", ".join(map(str, sorted(seeds))))] if seeds else []),
        *((name, _fact_text(value)) for name, value in environment.items()),
    ]


def _fact_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _caption(figure: Figure) -> str:
    return f"{figure.title}. {figure.note}" if figure.note else figure.title


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _markdown_report(
    folder: Path, title: str, sections: list[Section], facts: list[tuple[str, str]]
) -> str:
    blocks = [f"# {_markdown(title)}", f"**{_markdown(_summary(sections))}**"]
    if overview := _by_table(sections):
        blocks.append(_markdown_rows(overview))
    if _tables(sections):
        blocks.append(_markdown(LEGEND))
    for section in sections:
        blocks.append(f"## {_markdown(section.title)}")
        blocks += map(_markdown, _paragraphs(section.text))
        for table in section.tables:
            blocks += [f"### {_markdown(table.title)}", _markdown_rows(table)]
            blocks += map(_markdown, _notes(table))
        for figure in section.figures:
            path = quote(Path(os.path.relpath(figure.path, folder)).as_posix())
            blocks += [f"![{_markdown(figure.title)}]({path})", _markdown(_caption(figure))]
    lines = [f"- {_markdown(name)}: {_markdown(text)}" for name, text in facts]
    blocks += ["## Environment", "\n".join(lines)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_rows(table: Table) -> str:
    head = [
        _markdown_line(["", *map(_markdown, table.columns)]),
        "|---" * (len(table.columns) + 1) + "|",
    ]
    return "\n".join([*head, *map(_markdown_row, table.rows)])


def _markdown_row(row: Row) -> str:
    name = _markdown(row.name)
    tags = "".join(f" ({tag})" for tag in _row_tags(row))
    style = "*" if row.source == "published" else "**" if row.is_reference else ""
    cells = [
        "<br>".join(
            f"**{_markdown(text)}**" if text in VERDICTS else _markdown(text)
            for _, text in _cell_lines(cell, row.source)
        )
        for cell in row.cells
    ]
    return _markdown_line([f"{style}{name}{style}{tags}", *cells])


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Escape plain text; an interval, which is no link, keeps its brackets readable."""
    escaped = re.sub(
        r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False)
    )
    return _INTERVAL.sub(r"[\1]", escaped)


def _html_report(title: str, sections: list[Section], facts: list[tuple[str, str]]) -> str:
    overview = _by_table(sections)
    body = [
        _element("h1", title),
        f'<p class="summary">{_html_counts(sections)}</p>',
        _html_table(overview) if overview else "",
        _element("p", LEGEND, "legend") if _tables(sections) else "",
        *(line for section in sections for line in _html_section(section)),
        "<h2>Environment</h2>",
        "<dl>",
        *(_element("dt", name) + _element("dd", text) for name, text in facts),
        "</dl>",
    ]
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{_element('title', title)}\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>"
    )
    lines = "\n".join(line for line in body if line)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n{lines}\n</body>\n</html>\n"
    )


def _html_counts(sections: list[Section]) -> str:
    counts = count_verdicts(_tables(sections))
    if not counts:
        return html.escape(_summary(sections))
    return " ".join(
        _element("span", f"{counts[verdict]} {verdict}", verdict.replace(" ", "-"))
        for verdict in VERDICTS
    ) + html.escape(f" of {counts.total()} measured numbers that have been published")


def _html_section(section: Section) -> Iterator[str]:
    yield _element("h2", section.title)
    yield from (_element("p", paragraph) for paragraph in _paragraphs(section.text))
    for table in section.tables:
        yield _element("h3", table.title)
        yield _html_table(table)
        yield from (_element("p", note, "note") for note in _notes(table))
    for figure in section.figures:
        picture = base64.b64encode(figure.path.read_bytes()).decode()
        yield (
            f'<figure><img src="data:image/png;base64,{picture}" alt="{html.escape(figure.title)}">'
            f"{_element('figcaption', _caption(figure))}</figure>"
        )


def _html_table(table: Table) -> str:
    head = "".join(_element("th", column) for column in ["", *table.columns])
    rows = "\n".join(map(_html_row, table.rows))
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _html_row(row: Row) -> str:
    tags = _row_tags(row)
    name = html.escape(row.name) + "".join(_element("span", tag, "tag") for tag in tags)
    cells = "".join(
        "<td>"
        + "".join(_element("div", text, kind) for kind, text in _cell_lines(cell, row.source))
        + "</td>"
        for cell in row.cells
    )
    return f'<tr class="{" ".join(tags)}"><th>{name}</th>{cells}</tr>'


def _element(name: str, text: str, css: str = "") -> str:
    """Return an element that holds plain text."""
    attribute = f' class="{html.escape(css)}"' if css else ""
    return f"<{name}{attribute}>{html.escape(text)}</{name}>"
