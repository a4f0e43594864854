import json

import pytest

from mmm4rec.config import PrepareConfig
from pipeline.domains import CATALOGUES, find_domain, name_domain
from pipeline.published import compare_counts
from pipeline.schema import Count

OFFICE = find_domain("Office")
COUNTS = [
    Count(step="read", users=3_404_914, items=306_800, interactions=5_581_313),
    Count(step="exact duplicates removed", users=3_404_914, items=306_800, interactions=5_387_335),
    Count(step="5-core", users=87_346, items=25_986, interactions=684_837),
]


def _counts(**changed):
    return [*COUNTS[:-1], COUNTS[-1].model_copy(update=changed)]


def test_counts_as_published_have_no_difference():
    compared = compare_counts(OFFICE, COUNTS, PrepareConfig(), images=16_628)
    assert compared["note"] is compared["first_difference"] is None
    assert [(row["step"], row["quantity"], row["published"]) for row in compared["rows"]] == [
        ("read", "interactions", 5_581_313),
        ("5-core", "users", 87_346),
        ("5-core", "items", 25_986),
        ("5-core", "interactions", 684_837),
        ("images", "items", 16_628),
    ]
    assert all(row["found"] == row["published"] for row in compared["rows"])
    assert json.loads(json.dumps(compared)) == compared


@pytest.mark.parametrize(
    ("counts", "images", "first", "differences"),
    [
        (_counts(users=87_340, interactions=684_840), 10, "5-core", [0, -6, 0, 3, -16_618]),
        (COUNTS, 16_629, "images", [0, 0, 0, 0, 1]),
        (COUNTS, None, None, [0, 0, 0, 0]),
        (COUNTS[:1], None, None, [0]),
        ([COUNTS[0].model_copy(update={"interactions": 1}), *COUNTS[1:]], None, "read", None),
    ],
)
def test_the_step_at_which_a_difference_begins_is_named(counts, images, first, differences):
    compared = compare_counts(OFFICE, counts, PrepareConfig(), images)
    assert compared["first_difference"] == first
    if differences is not None:
        assert [row["difference"] for row in compared["rows"]] == differences


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"k_core": 3}, "k_core is 3, published counts are of 5"),
        ({"duplicates": "pair"}, "duplicates is pair, published counts are of exact"),
        ({"require_metadata": False}, "require_metadata is False, published counts are of True"),
        ({"release": "2023"}, "release is 2023, published counts are of 2018"),
    ],
)
def test_other_policies_are_not_compared(settings, note):
    compared = compare_counts(OFFICE, COUNTS, PrepareConfig(**settings))
    assert compared == {"rows": [], "first_difference": None, "note": f"not comparable: {note}"}


def test_settings_that_change_no_count_do_not_matter():
    settings = PrepareConfig(text_template="official", max_bad_lines=3, require_image=True)
    assert compare_counts(OFFICE, COUNTS, settings)["note"] is None


def test_a_set_without_published_counts_says_so():
    compared = compare_counts(name_domain("Mine"), COUNTS, PrepareConfig())
    assert compared["note"] == "not comparable: no published counts of Mine are known"


def test_of_most_categories_only_the_ratings_are_published():
    for domain in CATALOGUES["2018"]:
        rows = compare_counts(domain, COUNTS, PrepareConfig(), 1)["rows"]
        assert len(rows) == (1 if domain.published is None else 5)
