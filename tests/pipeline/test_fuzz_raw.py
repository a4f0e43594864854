"""Thousands of mutated lines: nothing crashes, and each line is accounted for.

What is expected of each line is written here once more, as plainly as possible.
"""

import json
import math
import random
import re

import pytest

from pipeline import jsonlines, rawfile
from pipeline.amazon import read_interactions
from pipeline.metadata import read_metadata
from pipeline.rawfile import LATEST
from pipeline.releases import INTERACTIONS, METADATA
from pipeline.text import item_text

JUNK = [
    *[b"\x00", b"\x01", b"\x1f", b"\x7f", b"\r", b"\t", b" ", b"\x0c", b"\xff", b"\xc0\x80"],
    *[b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xef\xbf\xbd", b"\xe2\x80\xa8", b"\xf0\x9f\x98"],
    *[b"\\ud83d", b"\\udc00", b"\\ud83d\\ude00", b"\\u0000", b"\\u0061", b"\\", b'"', b"'", b"&#"],
    *[b"{", b"}", b"[", b"]", b",", b":", b"-", b"+", b".", b"e9", b"0", b"<b", b"null", b"NaN"],
    *[
        b"Infinity",
        b"true",
        b"[" * 300,
        b"]" * 300,
        b"[" * 3000,
        b"9" * 25,
        b"9" * 400,
        b"9" * 4400,
    ],
]
VALUES = [
    *[
        None,
        True,
        False,
        0,
        -1,
        5,
        86_400,
        4_102_444_800,
        1_600_000_000_000,
        2**63,
        10**40,
        10**4200,
    ],
    *[0.5, -0.0, 86_400.0, 1e39, 1e300, float("nan"), float("-inf")],
    *["", "5", "86400", "B7", "\ud83d", "a\ud83db", "\0", "<b>", "&amp;", "x" * 3000],
    *[[], {}, ["B7"], [[["x"]]], {"asin": "B7"}, {"parent_asin": "B7"}, [None, {"hi_res": 5}]],
]


def _mutants(make, count, seed):
    """Return lines, most of them changed; none has a line end inside it."""
    draw = random.Random(seed)
    lines = []
    for number in range(count):
        record = make(number, draw)
        if isinstance(record, dict):
            record = _change_record(record, draw)
            line = json.dumps(record, ensure_ascii=draw.random() < 0.8).encode(
                "utf-8", "surrogatepass"
            )
            line = _repeat_key(line, record, draw) if draw.random() < 0.1 else line
        else:
            line = record
        for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3])):
            line = _change_bytes(line, lines[-1] if lines else line, draw)
        lines.append(line.replace(b"\n", b" "))
    return lines


def _change_record(record, draw):
    if draw.random() < 0.3:
        record = record | {draw.choice(list(record)): draw.choice(VALUES)}
    if draw.random() < 0.1:
        record.pop(draw.choice(list(record)))
    return record


def _repeat_key(line, record, draw):
    key = json.dumps(draw.choice(list(record)))
    if draw.random() < 0.3:
        key = f'"\\u{ord(key[1]):04x}{key[2:]}'
    value = json.dumps(draw.choice(["B5", "u5", 5, 86_400, None, ["x"]]))
    pair = f"{key}: {value}".encode()
    first = draw.random() < 0.5
    return b"{" + pair + b", " + line[1:] if first else line[:-1] + b", " + pair + b"}"


def _change_bytes(line, other, draw):
    at, to = draw.randrange(len(line) + 1), draw.randrange(len(line) + 1)
    kind = draw.randrange(8)
    if kind == 0:  # one byte
        return line[:at] + bytes([draw.randrange(256)]) + line[at + 1 :]
    if kind == 1:  # a piece is missing
        return line[: min(at, to)] + line[max(at, to) :]
    if kind == 2:  # the end is missing
        return line[:at]
    if kind == 3:  # two lines in one
        return line[:at] + other[draw.randrange(len(other) + 1) :]
    if kind == 4:
        return draw.choice([b"", b" ", b"\t \r", b"\x0c"])
    if kind == 5:
        return line + draw.choice([b"\r", b" ", b" " + other, b"}"])
    return line[:at] + draw.choice(JUNK) + line[at:]


def _object(line):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_name(value):
    return isinstance(value, str) and re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}", value)


def _write(path, lines, good):
    """Write good lines first, so that the file is known for what it is, and one at the end."""
    path.write_bytes(b"\n".join([good, good, *lines, good]) + b"\n")
    return [good, good, *lines, good]


def _check_bad_lines(read, bad):
    assert read.bad_lines["line"].to_list() == bad
    assert (read.bad_lines["reason"].str.len_chars() > 5).all()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Many blocks and parts, so that lines are read in all ways."""
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1 << 15)
    monkeypatch.setattr(jsonlines, "_SMALL", 1 << 10)


# Metadata


def _item_2018(number, draw):
    return {
        "category": ["Grocery", "Salt &amp; Pepper"],
        "description": ["Fine <b>flakes</b>", "From Essex &#8212; {since} [1882]"],
        "title": f"Salt No. {number} \u00e9\u2014\U0001f600",
        "brand": "Maldon",
        "asin": f"B{draw.randrange(3000)}",
        "imageURL": ["https://x/1._SS40_.jpg"],
        "imageURLHighRes": ["https://x/1.jpg"],
    }


def _item_2023(number, draw):
    record = _item_2018(number, draw)
    picture = {"thumb": "https://x/1t.jpg", "hi_res": "https://x/1.jpg", "variant": "MAIN"}
    return {
        "title": record["title"],
        "store": "Maldon",
        "features": [],
        "description": record["description"],
        "images": [picture],
        "parent_asin": record["asin"],
    }


@pytest.mark.parametrize(("release", "make"), [("2018", _item_2018), ("2023", _item_2023)])
def test_mutated_metadata_lines_are_all_accounted_for(tmp_path, release, make):
    key, path = METADATA[release].asin, tmp_path / "meta_X.json"
    good = json.dumps(make(0, random.Random(9)) | {key: "B-good"}).encode()
    lines = _write(path, _mutants(make, 5000, seed=release), good)
    bad, records, well_formed, blank = [], {}, 0, 0
    for number, line in enumerate(lines, 1):
        record = _object(line)
        if not line.strip():
            blank += 1
        elif record is None or not _is_name(record.get(key)):
            bad.append(number)
        else:
            records[record[key]] = record
            well_formed += 1
    wanted = set(random.Random(1).sample(sorted(records), 300))
    for keep in (None, wanted):
        read = read_metadata(path, release=release, keep=keep, max_bad_lines=len(lines))
        assert read.lines == len(lines) == well_formed + len(bad) + blank
        _check_bad_lines(read, bad)
        assert read.asins.to_list() == sorted(records)
        kept = {asin: records[asin] for asin in sorted(wanted if keep else records)}
        assert read.rows["asin"].to_list() == list(kept)
        names = METADATA[release].text.items()
        texts = [
            item_text(asin, {name: record.get(source) for name, source in names}, "clean")
            for asin, record in kept.items()
        ]
        assert read.rows["text"].to_list() == texts
    assert min(len(bad), blank, well_formed) > 100


# Interactions


def _review_2018(number, draw):
    return {
        "overall": draw.choice([1.0, 4, 5.0]),
        "reviewerID": f"A{draw.randrange(300)}",
        "asin": f"B{draw.randrange(300)}",
        "reviewText": 'Says "asin": "B1" {and} [more] \u00e9 \U0001f600',
        "unixReviewTime": draw.randrange(18_000) * 86_400,
    }


def _review_2023(number, draw):
    record = _review_2018(number, draw)
    return {
        "rating": record["overall"],
        "text": record["reviewText"],
        "images": [{"small_image_url": "https://x/1.jpg"}],
        "asin": "B0",
        "parent_asin": record["asin"],
        "user_id": record["reviewerID"],
        "timestamp": record["unixReviewTime"] * 1000 + draw.randrange(1000),
    }


def _rating_2018(number, draw):
    row = _review_2018(number, draw)
    return (
        f"{row['asin']},{row['reviewerID']}\u00e9,{row['overall']},{row['unixReviewTime']}".encode()
    )


def _rating_2023(number, draw):
    row = _review_2023(number, draw)
    return f"{row['user_id']},{row['parent_asin']},{row['rating']},{row['timestamp']}".encode()


def _expected_review(line, release):
    fields, record = INTERACTIONS[release], _object(line) or {}
    user, asin = record.get(fields.user), record.get(fields.asin)
    rating, time = record.get(fields.rating), record.get(fields.timestamp)
    if not isinstance(user, str) or not user or re.search("[\ud800-\udfff]", user):
        return None
    if not _is_name(asin) or type(rating) not in (int, float) or type(time) is not int:
        return None
    if not -3.4e38 <= rating <= 3.4e38 or not 0 <= time <= LATEST * fields.per_second:
        return None
    return user, asin, float(rating), time // fields.per_second


def _expected_rating(line, release):
    fields = INTERACTIONS[release]
    values = line.decode("utf-8", "replace").removesuffix("\r").split(",")
    row = dict(zip(fields.columns, values, strict=False))
    if (
        len(values) != 4
        or not row["user"]
        or not row["asin"]
        or "\ufffd" in row["user"] + row["asin"]
    ):
        return None
    is_number = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", row["rating"])
    if not is_number or not re.fullmatch(r"[+-]?[0-9]+", row["timestamp"]):
        return None
    rating, time = float(row["rating"]), row["timestamp"]
    seconds = int(time) if len(time.lstrip("+-0")) < 20 else -1
    if not math.isfinite(rating) or abs(rating) > 3.4e38:
        return None
    in_time = 0 <= seconds <= LATEST * fields.per_second
    return (row["user"], row["asin"], rating, seconds // fields.per_second) if in_time else None


@pytest.mark.parametrize(
    ("name", "release", "make", "expect"),
    [
        ("X.json", "2018", _review_2018, _expected_review),
        ("X.jsonl", "2023", _review_2023, _expected_review),
        ("X.csv", "2018", _rating_2018, _expected_rating),
        ("X.csv", "2023", _rating_2023, _expected_rating),
    ],
)
def test_mutated_interactions_are_all_accounted_for(
    tmp_path, monkeypatch, name, release, make, expect
):
    if name == "X.csv":  # blocks of a few lines: only a block without a bad one is read at once
        monkeypatch.setattr(rawfile, "BLOCK_BYTES", 80)
    good = make(0, random.Random(9))
    good = good if isinstance(good, bytes) else json.dumps(good).encode()
    mutants, path = _mutants(make, 3000, seed=f"{name}{release}"), tmp_path / name
    header = INTERACTIONS[release].header.encode() if name == "X.csv" else b""
    lines = _write(path, mutants, good)
    if header:
        path.write_bytes(header + b"\n" + path.read_bytes())
        lines.insert(0, header)
    bad, rows, blank = [], [], 0
    for position, line in enumerate(lines):
        row = expect(line, release)
        if not line.strip() or (header and position == 0):
            blank += 1
        elif row is None:
            bad.append(position + 1)
        else:
            rows.append((*row, position))
    read = read_interactions(path, release=release, max_bad_lines=len(lines))
    assert read.lines == len(lines) == len(rows) + len(bad) + blank
    _check_bad_lines(read, bad)
    found = read.rows.rows()
    assert [(u, a, t, p) for u, a, _, t, p in found] == [(u, a, t, p) for u, a, _, t, p in rows]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in rows], rel=1e-6)
    assert min(len(bad), blank, len(rows)) > 50
