"""Golden counts on real data: the folder named by MMM4REC_REAL_DATA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmm4rec.config import PrepareConfig
from pipeline.amazon import read_interactions
from pipeline.atomic import AtomicFiles, read_atomic
from pipeline.filtering import k_core
from pipeline.inputs import resolve_inputs
from pipeline.metadata import read_metadata
from pipeline.splitting import ambiguous_order_share, assign_ids
from pipeline.survivors import filter_amazon
from pipeline.tables import write_parquet

REAL_DATA = os.environ.get("MMM4REC_REAL_DATA")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(REAL_DATA is None, reason="MMM4REC_REAL_DATA names no folder"),
]


def _magazines(real_data):
    folder = Path(real_data) / "amazon2018" / "Magazine_Subscriptions"
    return resolve_inputs("Magazine_Subscriptions", str(folder), Path("unused"))


def magazine_tables(real_data, folder):
    found = filter_amazon("Magazine_Subscriptions", _magazines(real_data), PrepareConfig(), folder)
    numbered = assign_ids(found.interactions, found.metadata)
    return numbered.interactions, numbered.users, numbered.items


def test_magazines_are_read_line_by_line():
    files = _magazines(REAL_DATA)
    ratings, metadata = read_interactions(files.interactions), read_metadata(files.metadata)
    assert (ratings.lines, ratings.rows.height, ratings.bad_lines.height) == (89_689, 89_689, 0)
    assert (metadata.lines, metadata.rows.height, metadata.bad_lines.height) == (3_385, 2_320, 0)
    assert (ratings.rows["timestamp"] % 86_400 == 0).all()


def test_magazines_have_the_known_counts_at_each_step(tmp_path):
    files = _magazines(REAL_DATA)
    found = filter_amazon("Magazine_Subscriptions", files, PrepareConfig(), tmp_path)
    assert [(count.step, count.interactions) for count in found.counts] == [
        ("read", 89_689),
        ("exact duplicates removed", 88_468),
        ("with metadata", 84_139),
        ("5-core", 1_950),
    ]
    assert (found.counts[-1].users, found.counts[-1].items) == (284, 126)
    assert ambiguous_order_share(found.interactions) == pytest.approx(158 / 284)


def test_magazines_have_clean_texts(tmp_path):
    _, _, items = magazine_tables(REAL_DATA, tmp_path)
    assert items.height == 126
    assert (items["title"] == "").sum() == 124  # an unclosed tag is all that Amazon left of them
    for column in ("title", "brand", "text"):
        assert not items[column].str.contains(r"<\w|&\w+;|a-size|\s\s|^\s|\s$").any()
    assert items["text"].str.len_chars().min() >= 17
    assert (items["image_urls"].list.len() > 0).sum() == 111


def test_only_the_items_of_the_core_need_be_held():
    files = _magazines(REAL_DATA)
    everything = read_metadata(files.metadata)
    wanted = k_core(read_interactions(files.interactions).rows, 5)["asin"].unique()
    kept = read_metadata(files.metadata, keep=wanted)
    assert kept.asins.equals(everything.asins)
    assert kept.rows.equals(everything.rows.filter(everything.rows["asin"].is_in(wanted.to_list())))


def test_magazines_are_the_same_bytes_whatever_the_hash_seed_and_threads(tmp_path):
    written = []
    for seed, threads in (("0", "1"), ("4242", "2")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads}
        command = [sys.executable, __file__, str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True)
        written.append([path.read_bytes() for path in sorted((tmp_path / seed).iterdir())])
    assert written[0] == written[1]
    assert [len(data) > 1000 for data in written[0]] == [True] * 3


def test_scientific_atomic_set_has_the_known_counts_and_its_own_numbers():
    folder = Path(REAL_DATA) / "scientific"
    files = resolve_inputs("Scientific", str(folder), Path("unused"))
    assert isinstance(files, AtomicFiles)
    tables = read_atomic(files)
    numbered = assign_ids(
        tables.interactions, tables.metadata, items=tables.items, users=tables.users
    )
    assert numbered.users.height == 8_442
    assert numbered.items.height == 4_385
    assert numbered.interactions.height == 59_384
    assert numbered.interactions["item_id"].n_unique() == 4_385
    assert tables.interactions["timestamp"].null_count() == 59_384
    first = (folder / "Scientific.test.inter").read_text().split("\n")[1].split("\t")
    expected = [int(number) + 1 for number in [*first[1].split(" "), first[2]]]
    own = numbered.interactions.filter(numbered.interactions["user_id"] == int(first[0]))
    assert own["item_id"].to_list() == expected
    assert numbered.items["asin"].to_list()[:3] == ["B00TNNWMXI", "B00IBZE2EQ", "B010Y25PQC"]
    assert (numbered.items["text"].str.len_chars() > 20).all()
    # Its authors cut long sequences after the core: a second core would take more away.
    assert k_core(tables.interactions, 5).height == 59_356


if __name__ == "__main__":  # what the test of the bytes runs, twice
    to = Path(sys.argv[1])
    to.mkdir()
    for number, table in enumerate(magazine_tables(REAL_DATA, to)):
        write_parquet(table, to / f"{number}.parquet")
