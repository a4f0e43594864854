import gzip
import json

import polars as pl
import pytest

from benchmarks.plain_prepare import PARSERS, Counted, plain_prepare, read_metadata
from benchmarks.raw_dump import METADATA_FILE, RATINGS_FILE, write_raw_dump
from pipeline.filtering import drop_duplicates, encode, k_core, keep_items
from pipeline.splitting import assign_ids
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA
from pipeline.text import item_text


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump")
    write_raw_dump(folder, 40_000, 1_700, seed=2)
    return folder


def _count(table):
    return Counted(table["user"].n_unique(), table["asin"].n_unique(), len(table))


def _by_the_pipeline(folder):
    """Return the counts and the numbered tables that the pipeline's functions give."""
    columns = ["asin", "user", "rating", "timestamp"]
    read = pl.read_csv(folder / RATINGS_FILE, has_header=False, new_columns=columns)
    read = read.with_row_index("position").select(*RAW_INTERACTION_SCHEMA)
    read = read.cast(RAW_INTERACTION_SCHEMA)
    names = {name: encode(read[name]) for name in ("user", "asin")}
    coded = read.with_columns(*(pl.Series(name, codes) for name, (codes, _) in names.items()))
    distinct = read[drop_duplicates(coded, "exact")["position"]]
    with gzip.open(folder / METADATA_FILE) as file:
        records = {record["asin"]: record for record in map(json.loads, file)}
    joined = keep_items(distinct, records)
    core = k_core(joined, 5)
    counts = {
        "read": _count(read),
        "exact duplicates removed": _count(distinct),
        "with metadata": _count(joined),
        "5-core": _count(core),
    }
    rows = [(asin, "", "", item_text(asin, r, "clean"), []) for asin, r in records.items()]
    metadata = pl.DataFrame(rows, schema=METADATA_SCHEMA, orient="row")
    return counts, assign_ids(core, metadata)


@pytest.mark.parametrize("parser", ["json", "eval"])
def test_counts_sequences_and_texts_are_those_of_the_pipeline(dump, tmp_path, parser):
    counts, numbered = _by_the_pipeline(dump)
    found = plain_prepare(
        dump / RATINGS_FILE, dump / METADATA_FILE, tmp_path / "out", parser=parser
    )
    assert found == counts
    assert list(found) == list(counts)
    assert counts["5-core"].interactions > 1_000
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").equals(numbered.interactions)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.equals(numbered.items.select("item_id", "asin", "text"))


def test_every_stage_is_measured_once_in_order(dump, tmp_path):
    stages = []

    def measure(stage, work):
        stages.append(stage)
        return work()

    plain_prepare(dump / RATINGS_FILE, dump / METADATA_FILE, tmp_path, k=3, measure=measure)
    assert stages == [
        "read ratings",
        "read metadata",
        "join and k-core",
        "order and ids",
        "texts",
        "write",
    ]


def test_a_core_by_hand_with_a_tie_and_a_duplicate(tmp_path):
    lines = ["A,u,5.0,20", "B,u,5.0,10", "C,u,5.0,10", "B,u,5.0,10"]
    lines += ["A,v,4.0,1", "B,v,4.0,1", "C,w,4.0,1", "X,v,1.0,1", "C,v,4.0,0"]
    (tmp_path / "r.csv").write_text("\n".join(lines) + "\n")
    with gzip.open(tmp_path / "m.gz", "wt") as file:
        for asin, title in (("A", "old"), ("B", "bee"), ("C", "sea"), ("A", "new")):
            file.write(json.dumps({"asin": asin, "title": title}) + "\n")
    counts = plain_prepare(tmp_path / "r.csv", tmp_path / "m.gz", tmp_path, k=2)
    assert counts == {
        "read": (3, 4, 9),
        "exact duplicates removed": (3, 4, 8),
        "with metadata": (3, 3, 7),
        "2-core": (2, 3, 6),
    }
    rows = pl.read_parquet(tmp_path / "interactions.parquet").rows()
    assert rows == [(0, 2, 10), (0, 3, 10), (0, 1, 20), (1, 3, 0), (1, 1, 1), (1, 2, 1)]
    texts = pl.read_parquet(tmp_path / "items.parquet")["text"].to_list()
    assert texts == ["new.", "bee.", "sea."]


def test_both_parsers_read_the_same(dump):
    first, second = (read_metadata(dump / METADATA_FILE, parse) for parse in PARSERS.values())
    assert first == second
    assert len(first) == 1_700


def test_eval_knows_the_words_of_json_and_nothing_else():
    assert PARSERS["eval"]('{"a": [null, true, false]}') == {"a": [None, True, False]}
    with pytest.raises(NameError, match="open"):
        PARSERS["eval"]("open('x')")
