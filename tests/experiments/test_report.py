import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.expected import Published
from experiments.report import (
    Cell,
    Figure,
    Row,
    Section,
    Table,
    count_verdicts,
    format_number,
    write_report,
)
from experiments.statistics import Comparison, Estimate

PICTURE = b"\x89PNG not really"
HOSTILE = "<script>alert('x')</script> | *a* `b` [c](javascript:d) ![e](f)\n\n# g & \"h\""
ENVIRONMENT = {"python": "3.11", "gpus": [], "versions": {"torch": "2.13", "mamba-ssm": None}}
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Which elements a page has, its text in order, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())


def measured(verdict, value=0.13):
    return Cell(
        f"{value:.4f} [0.1200, 0.1400]",
        Estimate(value, 0.12, 0.14, 3),
        Published(0.108, 0.0105, "authors' run log", "log"),
        Comparison(-0.0123, -0.02, -0.004, 0.001),
        0.004,
        verdict,
    )


def write(tmp_path, sections):
    folder = tmp_path / "a report"
    write_report(
        folder, "Ablations", sections, command="mmm4rec reproduce x", environment=ENVIRONMENT
    )
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    return markdown, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def sections(tmp_path):
    (tmp_path / "a report").mkdir()
    picture = tmp_path / "a report" / "my curve.png"
    picture.write_bytes(PICTURE)
    rows = [
        Row("full", [measured("reproduced")], is_reference=True),
        Row("without time", [measured("not reproduced")]),
        Row("two layers", [measured("cannot be told")]),
        Row("MISSRec", [Cell("0.1360", verdict="reproduced")], source="published"),
    ]
    table = Table("Office: test metrics", ["recall@10"], rows, ["A note."])
    return [
        Section("Office", "One.\n\nTwo.", [table], [Figure("Curves", picture, "By epoch.")]),
        Section("Arts", "", [Table("Arts: more", ["x"], rows[:1], [])], []),
    ]


def test_a_cell_shows_value_published_verdict_and_comparison(tmp_path, sections):
    markdown, html = write(tmp_path, sections)
    parts = [
        "0.1300 [0.1200, 0.1400]",
        "published 0.1080 \u00b1 0.0105",
        "not reproduced",
        "-0.0123 [-0.0200, -0.0040], p 0.004 **",
    ]
    line = next(line for line in markdown.splitlines() if line.startswith("| without time"))
    assert line.replace("\\*", "*") == (
        f"| without time | {parts[0]}<br>{parts[1]}<br>**{parts[2]}**<br>{parts[3]} |"
    )
    texts = Page(html).texts
    at = texts.index("without time")
    assert texts[at + 1 : at + 5] == parts


def test_verdicts_are_counted_at_the_top_and_by_table_and_only_where_measured(tmp_path, sections):
    assert count_verdicts(section.tables[0] for section in sections) == {
        "reproduced": 2,
        "not reproduced": 1,
        "cannot be told": 1,
    }
    markdown, html = write(tmp_path, sections)
    assert markdown.splitlines()[2].startswith(
        "**2 reproduced, 1 not reproduced, 1 cannot be told: of 4 measured"
    )
    assert "| Office: test metrics | 1 | 1 | 1 |\n| Arts: more | 1 | 0 | 0 |" in markdown
    assert Page(html).texts[2:6] == [
        "2 reproduced",
        "1 not reproduced",
        "1 cannot be told",
        "of 4 measured numbers that have been published",
    ]


def test_tables_of_one_title_are_counted_apart(tmp_path, sections):
    twice = [*sections[1:], *sections[1:]]
    markdown, _ = write(tmp_path, twice)
    assert markdown.count("| Arts: more | 1 | 0 | 0 |") == 2


def test_quoted_rows_and_the_reference_are_marked(tmp_path, sections):
    markdown, html = write(tmp_path, sections)
    assert "| *MISSRec* (quoted) | 0.1360" in markdown
    assert "| **full** (reference) |" in markdown
    assert '<tr class="quoted"><th>MISSRec<span class="tag">quoted</span>' in html
    assert '<tr class="reference"><th>full<span class="tag">reference</span>' in html


def test_sources_text_and_environment_are_there(tmp_path, sections):
    for text in write(tmp_path, sections):
        plain = text.replace("&#x27;", "'")
        assert "Published numbers: (1) authors' run log" in plain
        for part in ("One.", "Two.", "A note.", "By epoch.", "mmm4rec reproduce x", "torch 2.13"):
            assert part in plain
        assert "None" not in plain
    markdown, html = write(tmp_path, sections)
    assert "- seeds per cell: 3\n- python: 3.11\n- gpus: none\n- versions: torch 2.13\n" in markdown
    assert "<dt>gpus</dt><dd>none</dd>" in html
    assert re.search(r"- date: \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", markdown)


def test_pictures_are_linked_in_markdown_and_within_the_page(tmp_path, sections):
    markdown, html = write(tmp_path, sections)
    assert "![Curves](my%20curve.png)" in markdown
    links = Page(html).links
    assert links == [f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"]
    assert not re.search(r"https?://|url\(|@import", html)


def test_a_picture_elsewhere_is_linked_from_the_report(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(PICTURE)
    markdown, _ = write(tmp_path, [Section("A", "", [], [Figure("B", path, "")])])
    assert "![B](../x.png)" in markdown


def test_names_are_never_markup(tmp_path):
    path = tmp_path / "[x](y) <b>.png"
    path.write_bytes(PICTURE)
    cell = Cell(HOSTILE, published=Published(1, None, HOSTILE, HOSTILE), verdict=HOSTILE)
    table = Table(HOSTILE, [HOSTILE], [Row(HOSTILE, [cell])], [HOSTILE])
    section = Section(HOSTILE, HOSTILE, [table], [Figure(HOSTILE, path, HOSTILE)])
    markdown, html = write(tmp_path, [section])
    clean, _ = _harmless(tmp_path / "clean")
    page = Page(html)
    assert "script" not in page.elements
    assert page.elements.count("img") == 1
    assert sum("<script>" in text for text in page.texts) >= 6
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\((?!\.\./%5Bx%5D)", markdown)  # the picture is the only link
    assert not re.search(r"(?<!\\)`", markdown)
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert len(headings) == len([line for line in clean.splitlines() if line.startswith("#")])
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def _harmless(tmp_path):
    tmp_path.mkdir()
    path = tmp_path / "x.png"
    path.write_bytes(PICTURE)
    table = Table("a", ["b"], [Row("c", [Cell("d", verdict="e")])], [])
    return write(tmp_path, [Section("f", "g\n\nh", [table], [Figure("i", path, "j")])])


def test_an_attribute_cannot_be_left(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(PICTURE)
    _, html = write(tmp_path, [Section("A", "", [], [Figure('" onload="x', path, "")])])
    assert 'alt="&quot; onload=&quot;x"' in html


def test_intervals_stay_readable_and_links_do_not_hide_in_them(tmp_path):
    rows = [Row("a", [Cell("0.1 [0.05, +1.5e-3]"), Cell("[1, 2](http)"), Cell("[1, 2][3, 4]")])]
    markdown, _ = write(tmp_path, [Section("A", "", [Table("T", ["x", "y", "z"], rows, [])], [])])
    assert r"| a | 0.1 [0.05, +1.5e-3] | \[1, 2\](http) | \[1, 2\][3, 4] |" in markdown


def test_a_report_without_anything_published_says_so(tmp_path):
    markdown, html = write(tmp_path, [Section("A", "b", [], [])])
    for text in (markdown, html):
        assert "Nothing that was measured here has been published" in text
        assert "In a cell" not in text
    assert "Verdicts" not in markdown


def test_an_uncorrected_p_is_called_so_and_marks_follow_the_corrected_one(tmp_path):
    comparison = Comparison(0.5, 0.25, 0.75, 0.0001)
    limits = [None, 0.05, 0.0499, 0.0099, 0.0001]
    rows = [Row(str(p), [Cell("x", comparison=comparison, adjusted_p=p)]) for p in limits]
    _, html = write(tmp_path, [Section("A", "", [Table("T", ["x"], rows, [])], [])])
    ends = [text.split("], ")[1] for text in Page(html).texts if text.startswith("+0.5000")]
    assert ends == ["p 0.0001 (not corrected)", "p 0.05", "p 0.05 *", "p 0.0099 **", "p 0.0001 ***"]


def test_a_failure_leaves_the_old_report(tmp_path, sections):
    old = write(tmp_path, sections)
    broken = Section("A", "", [], [Figure("B", Path(tmp_path / "absent.png"), "")])
    with pytest.raises(FileNotFoundError):
        write(tmp_path, [broken])
    folder = tmp_path / "a report"
    assert (folder / "report.md").read_text(encoding="utf-8") == old[0]
    assert (folder / "report.html").read_text(encoding="utf-8") == old[1]
    assert sorted(p.name for p in folder.iterdir()) == ["my curve.png", "report.html", "report.md"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.1, "0.1000"),
        (0, "0"),
        (13, "13"),
        (87_346, "87,346"),
        (-0.5, "-0.5000"),
        (1e-12, "1e-12"),
    ],
)
def test_published_numbers_as_text(number, text):
    assert format_number(number) == text
