"""Items split so that each address is asked once and each host at the allowed rate."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.config import ImagesConfig
from pipeline.image_shares import plan_shares, split_items, take_over
from pipeline.outcomes import PARTS, Outcome, OutcomeLog, candidates

SIZES = [f"https://a.example/images/I/{n}._SL{size}_.jpg" for n in "xyz" for size in (50, 99)]
URL = st.sampled_from([*SIZES, *"abcdefgh"])
CATALOGUE = st.lists(st.lists(URL, max_size=3, unique=True))


@given(CATALOGUE, st.integers(1, 5), st.booleans())
def test_an_address_is_in_one_share(all_urls, num_shares, with_variants):
    shares = split_items(all_urls, num_shares, with_variants)
    assert len(shares) <= num_shares
    assert all(shares)
    assert sorted(urls for share in shares for urls in share) == sorted(all_urls)
    asked = [{url for urls in share for url in candidates(urls, with_variants)} for share in shares]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_shares_are_of_one_size():
    all_urls = [[f"{n}"] for n in range(103)]
    assert [len(share) for share in split_items(all_urls, 4, True)] == [26, 26, 26, 25]


def test_items_are_tied_by_any_chain_of_addresses():
    all_urls = [["a", "b"], ["x"], ["c", "d"], ["y"], ["b", "c"]]
    shares = split_items(all_urls, 2, False)
    assert shares == [[["a", "b"], ["c", "d"], ["b", "c"]], [["x"], ["y"]]]


def test_shares_keep_to_the_pace_of_one_process(catalogue, tmp_path):
    items = catalogue(["a"], ["b", "c"], None, ["", "a"])
    known = {url: Outcome(url, "permanent") for url in "bz"}
    config = ImagesConfig(workers=3, connections=16, rate_per_host=12.0)
    shares = plan_shares(items, tmp_path, config, known, retry_temporary=True)
    assert [share.all_urls for share in shares] == [[["a"], ["a"]], [["b", "c"]], [[]]]
    assert [share.config.rate_per_host for share in shares] == [4.0] * 3
    assert [share.config.connections for share in shares] == [5] * 3
    assert [list(share.known) for share in shares] == [[], ["b"], []]
    assert {(share.num_items, share.retry_temporary) for share in shares} == {(4, True)}
    assert pickle.loads(pickle.dumps(shares)) == shares


@pytest.mark.parametrize(
    ("workers", "connections", "num_shares"), [(9, 2, 2), (2, 9, 2), (9, 9, 3)]
)
def test_no_share_without_an_item_or_a_connection(
    workers, connections, num_shares, catalogue, tmp_path
):
    items = catalogue(["a"], ["b"], ["c"])
    config = ImagesConfig(workers=workers, connections=connections, rate_per_host=6.0)
    shares = plan_shares(items, tmp_path, config, {}, retry_temporary=False)
    assert len(shares) == num_shares
    assert {share.config.rate_per_host for share in shares} == {6.0 / num_shares}


def test_what_shares_have_brought_is_taken_over(catalogue, tmp_path):
    items, config = catalogue(["a"], ["b"]), ImagesConfig(workers=2)
    log = OutcomeLog(tmp_path)
    log.add(Outcome("a", "temporary"))
    shares = plan_shares(items, tmp_path, config, log.known, retry_temporary=True)
    for share in shares:
        own = share.open_log()
        own.add(Outcome(*share.all_urls[0], "permanent", attempts=share.number + 1))
        own.flush()
    assert shares[0].open_log().known["a"].status == "permanent"  # not what was known before
    take_over(log, tmp_path)
    for known in (log.known, OutcomeLog(tmp_path).known):
        assert [(one.url, one.attempts) for one in known.values()] == [("a", 1), ("b", 2)]
    assert [path.name for path in (tmp_path / PARTS).iterdir()] == ["part-000000.parquet"]
