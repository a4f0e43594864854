import gzip
import json
import random

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.amazon import LATEST, read_interactions, read_metadata, read_ratings, read_reviews
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA

GOOD = b"B1,u1,5.0,1005177600\nB2,u2,3,0\n"


def _write(path, data, pack=bytes):
    path.write_bytes(pack(data))
    return path


# Ratings


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_ratings_are_read_plain_or_gzipped_with_either_line_end(tmp_path, pack, ending):
    data = GOOD.replace(b"\n", ending)
    read = read_ratings(_write(tmp_path / "X.csv", data, pack))
    assert read.rows.rows() == [("u1", "B1", 5.0, 1005177600, 0), ("u2", "B2", 3.0, 0, 1)]
    assert read.rows.schema == RAW_INTERACTION_SCHEMA
    assert (read.lines, read.bad_lines.height) == (2, 0)


def test_ratings_are_the_same_whatever_the_block_size(tmp_path, monkeypatch):
    draw = random.Random(0)
    lines = [
        f"B{draw.randrange(99)},\u00fcser{draw.randrange(99)},{draw.randint(1, 5)}.0,{i * 86_400}"
        for i in range(300)
    ]
    path = _write(tmp_path / "X.csv", "\n".join(lines).encode())
    expected = [line.split(",") for line in lines]
    for size in (1 << 23, 100):
        monkeypatch.setattr(rawfile, "BLOCK_BYTES", size)
        read = read_ratings(path)
        assert read.rows.rows() == [
            (u, a, float(r), int(t), p) for p, (a, u, r, t) in enumerate(expected)
        ]
        assert read.lines == 300


def test_blank_lines_are_no_rows_but_count_in_the_position(tmp_path):
    read = read_ratings(_write(tmp_path / "X.csv", b"B1,u,5.0,1\n\r\n \nB2,u,5.0,2\n\n"))
    assert read.rows["position"].to_list() == [0, 3]
    assert read.lines == 5


def test_quotes_and_comment_signs_are_characters_of_names(tmp_path):
    read = read_ratings(_write(tmp_path / "X.csv", b'#B1,"u,5.0,1\nB2,u"x,5.0,2\n'))
    assert read.rows.select("asin", "user").rows() == [("#B1", '"u'), ("B2", 'u"x')]


BAD_RATINGS = [
    (b"B1,u1,5.0", "3 fields instead of 4"),
    (b"B1,u1,5.0,1,x", "5 fields instead of 4"),
    (b"B1,u1,5.0,1,", "5 fields instead of 4"),
    (b"B1,u1,5.0,1,x,y", "6 fields instead of 4"),
    (b"nothing", "1 fields instead of 4"),
    (b",u1,5.0,1", "the item or the user is empty"),
    (b"B1,,5.0,1", "the item or the user is empty"),
    (b"B1,\xff,5.0,1", "not UTF-8 text"),
    (b"B1,u1,five,1", "rating 'five' is not a finite number"),
    (b"B1,u1,,1", "rating '' is not a finite number"),
    (b"B1,u1,nan,1", "rating 'nan' is not a finite number"),
    (b"B1,u1,inf,1", "rating 'inf' is not a finite number"),
    (b"B1,u1,5.0,x", "timestamp 'x' is not an integer"),
    (b"B1,u1,5.0,1.5", "timestamp '1.5' is not an integer"),
    (b"B1,u1,5.0,", "timestamp '' is not an integer"),
    (b"B1,u1,5.0,9" + b"9" * 30, f"timestamp '9{'9' * 30}' is not an integer"),
    (b"B1,u1,5.0,-5", f"timestamp -5 is not in 0..{LATEST}"),
    (b"B1,u1,5.0,1005177600000", f"timestamp 1005177600000 is not in 0..{LATEST}"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_RATINGS)
def test_a_malformed_rating_is_an_error_with_file_line_and_reason(tmp_path, line, reason):
    path = _write(tmp_path / "X.csv", GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError, match="expected item,user,rating,Unix seconds") as error:
        read_ratings(path)
    assert str(error.value).startswith(f"{path}:3: {reason}")
    assert "--set prepare.max_bad_lines=N" in str(error.value)


def test_malformed_ratings_are_set_aside_where_allowed(tmp_path):
    bad = [line for line, _ in BAD_RATINGS]
    path = _write(tmp_path / "X.csv", GOOD + b"\n".join(bad) + b"\r\n" + GOOD)
    read = read_ratings(path, max_bad_lines=len(bad))
    assert read.rows["position"].to_list() == [0, 1, len(bad) + 2, len(bad) + 3]
    assert read.bad_lines["line"].to_list() == list(range(3, len(bad) + 3))
    assert [r.split(" (")[0] for r in read.bad_lines["reason"]] == [r for _, r in BAD_RATINGS]
    assert read.bad_lines["text"][0] == "B1,u1,5.0"
    with pytest.raises(DataError, match=f"so far: {len(bad)}, allowed: {len(bad) - 1}"):
        read_ratings(path, max_bad_lines=len(bad) - 1)


# Reviews


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


REVIEW = {"reviewerID": "u1", "asin": "B1", "overall": 4, "unixReviewTime": 86_400, "x": [1]}


def test_reviews_give_the_rows_that_ratings_give(tmp_path):
    reviews = [REVIEW, REVIEW | {"asin": "B2", "overall": 5.0, "unixReviewTime": 0}]
    data = _lines(reviews).replace(b"\n", b"\n\n", 1)
    read = read_interactions(_write(tmp_path / "X_5.json.gz", data, gzip.compress))
    csv = _write(tmp_path / "X.csv", b"B1,u1,4,86400\n\nB2,u1,5.0,0\n")
    assert read.rows.equals(read_interactions(csv).rows)
    assert read.rows["position"].to_list() == [0, 2]
    assert read.lines == 3


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (REVIEW | {"reviewerID": ""}, "reviewerID '' is not a name"),
        (REVIEW | {"reviewerID": 7}, "reviewerID 7 is not a name"),
        (REVIEW | {"reviewerID": "\ud83d"}, r"reviewerID '\ud83d' is not a name"),
        (REVIEW | {"asin": None}, "asin None is not 1 to 64 letters"),
        (REVIEW | {"overall": "5"}, "overall '5' is not a finite number"),
        (REVIEW | {"overall": float("nan")}, "overall nan is not a finite number"),
        (REVIEW | {"unixReviewTime": "01 2, 2012"}, "timestamp '01 2, 2012' is not an integer"),
        (REVIEW | {"unixReviewTime": True}, "timestamp True is not an integer"),
        (REVIEW | {"unixReviewTime": -1}, "timestamp -1 is not in 0.."),
        ([1], "JSON, but a list"),
    ],
)
def test_a_malformed_review_is_an_error_with_file_line_and_reason(tmp_path, record, reason):
    path = _write(tmp_path / "X.json", _lines([REVIEW, record]))
    with pytest.raises(DataError, match="expected a JSON object with reviewerID") as error:
        read_reviews(path)
    assert str(error.value).startswith(f"{path}:2: {reason}")


# Metadata


def _read_metadata(tmp_path, records, **kwargs):
    data = records if isinstance(records, bytes) else _lines(records)
    return read_metadata(_write(tmp_path / "meta_X.json.gz", data, gzip.compress), **kwargs)


def test_metadata_is_cleaned_sorted_and_the_last_line_of_an_item_holds(tmp_path):
    read = _read_metadata(
        tmp_path,
        [
            {"asin": "B2", "title": "Old"},
            {"asin": "B1", "title": "One &amp; only", "brand": " Acme ", "description": ["d"]},
            {"asin": "B2", "title": "New", "image": ["http://x/2.jpg"]},
        ],
    )
    assert read.rows.rows() == [
        ("B1", "One & only", "Acme", "One & only. Acme. d.", []),
        ("B2", "New", "", "New.", ["http://x/2.jpg"]),
    ]
    assert read.rows.schema == METADATA_SCHEMA
    assert read.asins.to_list() == ["B1", "B2"]
    assert read.lines == 3


def test_image_urls_are_all_high_resolution_first_and_each_once(tmp_path):
    record = {
        "asin": "B1",
        "imageURL": ["http://x/a_SS40.jpg", "http://x/b.jpg", ""],
        "imageURLHighRes": [" http://x/b.jpg", None, 3, "http://x/a.jpg", "http://x/a.jpg"],
        "image": "http://x/c.jpg",
    }
    urls = _read_metadata(tmp_path, [record]).rows["image_urls"][0].to_list()
    assert urls == [
        "http://x/b.jpg",
        "http://x/a.jpg",
        "http://x/a_SS40.jpg",
        "http://x/c.jpg",
    ]


def test_image_urls_are_bounded_in_number_and_length(tmp_path):
    urls = ["http://x/" + "y" * 3000] + [f"http://x/{i}" for i in range(500)]
    kept = _read_metadata(tmp_path, [{"asin": "B1", "imageURL": urls}]).rows["image_urls"][0]
    assert kept.to_list() == urls[1:65]


@pytest.mark.parametrize("value", [None, 1, True, {"a": 1}, [], [[["x"]]], "", "x", ["x", None]])
def test_a_field_of_any_type_is_read(tmp_path, value):
    fields = ("title", "brand", "description", "category", "feature", "imageURL", "imageURLHighRes")
    record = {"asin": "B1"} | dict.fromkeys(fields, value)
    for template in ("clean", "official"):
        read = _read_metadata(tmp_path, [record], template=template)
        assert read.rows["text"][0]


def test_only_kept_items_are_held_but_all_are_counted(tmp_path):
    records = [
        {"title": "One", "asin": "B1"},
        {"asin": "B2", "title": "Two"},
        {"asin": "B3", "similar": [{"asin": "B1"}], "title": "Three"},  # two names in one line
        {"asin": "B4", "title": 'says \\"asin\\": \\"B1\\"'},
    ]
    kept = _read_metadata(tmp_path, records, keep=["B1", "B9"])
    assert kept.rows["asin"].to_list() == ["B1"]
    everything = _read_metadata(tmp_path, records)
    assert kept.asins.to_list() == everything.asins.to_list() == ["B1", "B2", "B3", "B4"]
    assert kept.rows.row(0) == everything.rows.row(0)
    assert _read_metadata(tmp_path, records, keep=pl.Series(["B3"])).rows["title"][0] == "Three"


BAD_METADATA = [
    (b"not json", "not JSON (Expecting value at column 1)"),
    (b'{"asin": "B1", "title": "x', "not JSON (Unterminated string starting at at column 25)"),
    (b'{"asin": "B1"} {"asin": "B2"}', "not JSON (Extra data at column 16)"),
    (b'["asin"]', "JSON, but a list"),
    (b'{"title": "x"}', "asin None is not 1 to 64 letters, digits, or _ . -"),
    (b'{"asin": ""}', "asin '' is not"),
    (b'{"asin": 5}', "asin 5 is not"),
    (b'{"asin": "../../etc/passwd"}', "asin '../../etc/passwd' is not"),
    (b'{"asin": "B\xff"}', "not UTF-8 text"),
    (b'{"asin": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"asin": ' + b"1" * 5000 + b"}", "Exceeds the limit (4300 digits)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_METADATA)
@pytest.mark.parametrize("keep", [None, ["B0"]])
def test_malformed_metadata_is_an_error_with_file_line_and_reason(tmp_path, line, reason, keep):
    data = b'{"asin": "B0"}\n' + line + b"\n"
    with pytest.raises(DataError, match="expected a JSON object with an asin") as error:
        _read_metadata(tmp_path, data, keep=keep)
    assert str(error.value).startswith(f"{tmp_path / 'meta_X.json.gz'}:2: {reason}")


def test_malformed_metadata_is_set_aside_where_allowed(tmp_path):
    data = b'{"asin": "B0"}\n\n' + b"\n".join(line for line, _ in BAD_METADATA) + b'\n{"asin":"B9"}'
    read = _read_metadata(tmp_path, data, max_bad_lines=99)
    assert read.asins.to_list() == ["B0", "B9"]
    assert read.bad_lines["line"].to_list() == list(range(3, 3 + len(BAD_METADATA)))
    assert read.lines == len(BAD_METADATA) + 3


def test_text_that_utf_8_cannot_hold_is_repaired(tmp_path):
    data = b'{"asin": "B1", "title": "a \\ud83d b", "image": ["http://x/\\ud83d"]}\n'
    for template in ("clean", "official"):
        row = _read_metadata(tmp_path, data, template=template).rows.row(0)
        assert row[1] == "a b"
        assert row[4] == ["http://x/?"]


def test_nothing_downloaded_is_evaluated(tmp_path):
    marker = tmp_path / "evaluated"
    data = f'{{"asin": __import__("pathlib").Path("{marker}").touch()}}\n'.encode()
    with pytest.raises(DataError, match="not JSON"):
        _read_metadata(tmp_path, data)
    assert not marker.exists()


def test_mutated_lines_never_crash_and_are_all_accounted_for(tmp_path):
    draw = random.Random(1)
    record = {"asin": "B1", "title": "T <b>&amp;", "description": ["d", None], "imageURL": ["u"]}
    line = json.dumps(record).encode()
    lines = []
    for number in range(2000):
        mutant = bytearray(line.replace(b"B1", b"B%d" % number))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(mutant))
            mutant[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
        lines.append(bytes(mutant).replace(b"\n", b" "))
    data = line + b"\n" + b"\n".join(lines)
    read = _read_metadata(tmp_path, data, max_bad_lines=len(lines))
    again = _read_metadata(tmp_path, data, max_bad_lines=len(lines), keep=read.asins)
    assert read.lines == len(lines) + 1
    assert 0 < read.bad_lines.height < len(lines)
    assert read.rows.height == len(read.asins) <= read.lines - read.bad_lines.height
    assert again.rows.equals(read.rows)
