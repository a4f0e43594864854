from pathlib import Path
from typing import get_args

import pytest

from mmm4rec.errors import DataError
from pipeline.domains import Release
from pipeline.rawfile import LATEST
from pipeline.releases import INTERACTIONS, METADATA, check_records, check_rows

PATH = Path("X.csv")
ROW = "B1,u1,5.0,1005177600"
HEADER = "user_id,parent_asin,rating,timestamp"
ROW_2023 = "u1,B1,5.0,1005177600000"


def test_every_release_has_its_fields():
    assert set(INTERACTIONS) == set(METADATA) == set(get_args(Release))
    for release, fields in INTERACTIONS.items():
        assert set(fields.columns) == {"user", "asin", "rating", "timestamp"}
        assert fields.latest == LATEST * fields.per_second
        names = {"title", "brand", "category", "feature", "description"}
        assert set(METADATA[release].text) == names


def test_a_time_is_described_with_its_unit():
    fields = INTERACTIONS["2023"]
    assert fields.describe_time(None, "x") == "timestamp 'x' is not an integer"
    assert fields.describe_time(-1, -1) == (
        "timestamp -1 is not in 0..4102444800000 (Unix milliseconds until 2100)"
    )


@pytest.mark.parametrize(
    ("lines", "release"),
    [
        ([ROW, ROW], "2018"),
        (["", ROW], "2018"),
        (["", " "], "2018"),
        (["B1,u1,x,y", "B1,u1,5.0,z"], "2018"),  # malformed, but no header
        (["B1,u1", ROW], "2018"),
        (["B1,u1,5.0,1005177600000", ROW], "2018"),
        ([HEADER, ROW_2023], "2023"),
        ([HEADER], "2023"),
        ([HEADER, ROW, ROW_2023], "2023"),
        ([HEADER, "", "u1,B1,5.0,0"], "2023"),
    ],
)
def test_ratings_of_the_release_pass(lines, release):
    check_rows(PATH, lines, release)


@pytest.mark.parametrize(
    ("lines", "release", "message"),
    [
        (
            [HEADER, ROW_2023],
            "2018",
            "looks like ratings of the 2023 release. Next: --release 2023",
        ),
        ([ROW], "2023", "looks like ratings of the 2018 release. Next: --release 2018"),
        (["item,user,rating,time", ROW], "2018", "have no header, .* 'item,user,rating,time'"),
        (["item,user,rating,time", ROW], "2023", f"is {HEADER}, but here it is 'item,user"),
        ([ROW_2023, ROW_2023], "2018", r"look like milliseconds \(1005177600000\)"),
        ([HEADER, "u1,B1,5.0,1005177600"], "2023", r"look like seconds \(1005177600\)"),
    ],
)
def test_other_ratings_are_refused(lines, release, message):
    with pytest.raises(DataError, match=f"X.csv: .*{message}"):
        check_rows(PATH, lines, release)


REVIEW = {"reviewerID": "u", "asin": "B1", "unixReviewTime": 1_005_177_600}
REVIEW_2023 = {"user_id": "u", "asin": "B", "parent_asin": "B1", "timestamp": 1_005_177_600_000}
ITEM, ITEM_2023 = {"asin": "B1", "title": "x"}, {"parent_asin": "B1", "title": "x"}


@pytest.mark.parametrize("release", get_args(Release))
@pytest.mark.parametrize("kind", ["reviews", "metadata"])
def test_records_pass_as_what_they_are_and_nothing_else(kind, release):
    records = {
        ("reviews", "2018"): REVIEW,
        ("reviews", "2023"): REVIEW_2023,
        ("metadata", "2018"): ITEM,
        ("metadata", "2023"): ITEM_2023,
    }
    for found, record in records.items():
        if found == (kind, release):
            check_records(PATH, [record], kind, release)
            continue
        remedy = f"--release {found[1]}" if found[0] == kind else "give each file its own name"
        match = (
            f"expected {kind} of the {release} release, but this looks like {found[0]} of the "
            f"{found[1]} release. Next: {remedy}"
        )
        with pytest.raises(DataError, match=match):
            check_records(PATH, [{"x": 1}, record], kind, release)
        check_records(PATH, [record, records[kind, release]], kind, release)  # one bad line


@pytest.mark.parametrize("records", [[], [{}], [{"title": "x"}]])
def test_records_that_say_nothing_pass(records):
    check_records(PATH, records, "metadata", "2023")
    check_records(PATH, records, "reviews", "2018")


def test_reviews_with_times_in_another_unit_are_refused():
    for release, record, unit in (
        ("2018", REVIEW | {"unixReviewTime": 1_005_177_600_000}, "milliseconds"),
        ("2023", REVIEW_2023 | {"timestamp": 1_005_177_600}, "seconds"),
    ):
        with pytest.raises(DataError, match=f"but these look like {unit}"):
            check_records(PATH, [record], "reviews", release)
