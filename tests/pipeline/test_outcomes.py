"""What became of every URL: kept on disk, and summed up per item."""

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline.outcomes import (
    OUT_OF_REACH,
    OUTCOME_SCHEMA,
    OUTCOMES,
    PARTS,
    Outcome,
    OutcomeLog,
    candidates,
    image_status,
    item_outcomes,
)

PICTURE = "https://mirror.example/images/I/51a._SS40_.jpg"
ORIGINAL, MODERATE = PICTURE.replace("._SS40_", ""), PICTURE.replace("SS40", "SL500")


def ok(url, sha256="s"):
    return Outcome(url, "ok", attempts=1, sha256=sha256, file=f"{sha256}.jpg", fetched_at=5)


def bad(url, error="gone", status="permanent"):
    return Outcome(url, status, attempts=1, error=error, fetched_at=5)


@pytest.fixture
def status_of(catalogue):
    """Status and file per item, of items by their URLs and of what is known."""

    def sum_up(items, *outcomes, placeholder_items=0):
        table = catalogue(*items)
        known = {outcome.url: outcome for outcome in outcomes}
        rows = item_outcomes(table, known, with_variants=True)
        status = image_status(table, rows, placeholder_items)
        assert status.schema == {
            "item_id": pl.UInt32, "image_status": pl.String, "file": pl.String,
        }  # fmt: skip
        assert status["item_id"].to_list() == list(range(1, len(items) + 1))
        return list(zip(status["image_status"], status["file"], strict=True))

    return sum_up


def test_the_latest_outcome_counts(tmp_path):
    log = OutcomeLog(tmp_path)
    log.add(bad("u", "timeout", "temporary"))
    log.flush()
    log.flush()  # nothing new: no part
    log = OutcomeLog(tmp_path)
    log.add(ok("u"))
    assert log.num_unwritten == 1
    log.flush()
    assert len(list((tmp_path / PARTS).iterdir())) == 2
    assert OutcomeLog(tmp_path).known == {"u": ok("u")}


def test_a_complete_run_is_one_table_of_typed_columns(tmp_path, catalogue):
    log = OutcomeLog(tmp_path)
    for outcome in (ok("a"), bad("b"), bad("elsewhere")):
        log.add(outcome)
    log.flush()
    table = log.finish(catalogue(["b", "a"]), with_variants=True)
    assert table.schema == OUTCOME_SCHEMA
    assert table["fetched_at"].to_list() == [5, 5]
    stored = pl.read_parquet(tmp_path / OUTCOMES)
    assert stored.schema == OUTCOME_SCHEMA
    assert stored.select("item_id", "url").rows() == [(1, "b"), (1, "a"), (None, "elsewhere")]
    assert not (tmp_path / PARTS).exists()
    assert OutcomeLog(tmp_path).known == {o.url: o for o in (ok("a"), bad("b"), bad("elsewhere"))}


def test_something_else_under_the_outcomes_name(tmp_path):
    (tmp_path / OUTCOMES).write_text("hello")
    with pytest.raises(DataError, match=r"outcomes\.parquet is not a table .*Next: delete it"):
        OutcomeLog(tmp_path)


def test_rows_of_an_item_end_at_the_first_ok(catalogue):
    known = {"b": ok("b"), "a": bad("a")}
    table = item_outcomes(catalogue(["a", "a", "b", "c"], ["c"]), known, with_variants=True)
    assert table.select("item_id", "url", "status", "fetched_at").rows() == [
        (1, "a", "permanent", 5),
        (1, "b", "ok", 5),
        (2, "c", "skipped", None),
    ]


def test_variants_come_after_all_urls_of_an_item():
    assert list(candidates([PICTURE, "", "other", PICTURE], with_variants=True)) == [
        PICTURE, "other", ORIGINAL, MODERATE,
    ]  # fmt: skip
    assert list(candidates([PICTURE], with_variants=False)) == [PICTURE]
    assert list(candidates(None, with_variants=True)) == []


def test_a_variant_has_a_row_where_it_was_asked(catalogue):
    items = catalogue([PICTURE, "other"])

    def urls(*outcomes, with_variants=True):
        known = {outcome.url: outcome for outcome in outcomes}
        return item_outcomes(items, known, with_variants)["url"].to_list()

    failed = bad(PICTURE), bad("other")
    assert urls() == [PICTURE, "other"]  # skipped: nothing was asked
    assert urls(*failed) == [PICTURE, "other"]
    assert urls(*failed, bad(ORIGINAL), ok(MODERATE)) == [PICTURE, "other", ORIGINAL, MODERATE]
    assert urls(*failed, ok(MODERATE), with_variants=False) == [PICTURE, "other"]


def test_the_status_is_what_became_of_an_items_own_urls(status_of):
    found = status_of(
        [["a"], ["b", "a"], ["b", "c"], [], None, ["d"], [PICTURE], [ORIGINAL]],
        ok("a"),
        bad("b"),
        bad("c", "truncated"),
        bad(PICTURE),
        bad(MODERATE, "http_5xx", "temporary"),  # only a guess
        bad(ORIGINAL, "timeout", "temporary"),
    )
    assert found == [
        ("ok", "s.jpg"),
        ("ok", "s.jpg"),
        ("truncated", None),
        ("missing", None),
        ("missing", None),
        ("disabled", None),
        ("gone", None),
        ("host_unreachable", None),
    ]


def test_a_variant_is_an_items_picture_too(status_of):
    assert status_of([[PICTURE]], bad(PICTURE), bad(ORIGINAL), ok(MODERATE)) == [("ok", "s.jpg")]


@pytest.mark.parametrize("error", [*OUT_OF_REACH, "host_unreachable"])
def test_a_host_out_of_reach_has_one_name(status_of, error):
    assert status_of([["a"]], bad("a", error, "temporary")) == [("host_unreachable", None)]


@pytest.mark.parametrize(("threshold", "num_placeholders"), [(0, 0), (2, 5), (3, 3), (4, 0)])
def test_a_picture_that_many_items_share_is_a_placeholder(status_of, threshold, num_placeholders):
    # Three items share one picture under two URLs, two share another, one has its own.
    items = [["a"], ["b"], ["bad", "a"], ["c"], ["c"], ["d"], ["bad"]]
    outcomes = [ok("a", "x"), ok("b", "x"), ok("c", "y"), ok("d", "z"), bad("bad")]
    found = status_of(items, *outcomes, placeholder_items=threshold)
    assert found.count(("placeholder", None)) == num_placeholders
    assert found[5:] == [("ok", "z.jpg"), ("gone", None)]
    assert sum(status == "ok" for status, _ in found) == 6 - num_placeholders


def test_pictures_are_counted_by_items_not_by_urls(status_of):
    found = status_of([["a", "b", "c"], ["d"]], *(ok(url) for url in "abcd"), placeholder_items=3)
    assert found == [("ok", "s.jpg")] * 2
