import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import jsonlines
from pipeline.jsonlines import (
    describe_problem,
    parse_name,
    parse_object,
    parse_sample,
    read_parts,
)
from pipeline.rawfile import split_lines

FIELDS = {"name": pl.String, "time": pl.Int64}
GOOD = (pl.col("name") != "") & (pl.col("time") >= 0)
LINE = b'{"name": "a", "time": 1}'


def _read_with_care(line):
    """What Python's parser makes of a line, None where it has not both fields of their types."""
    try:
        record = parse_object(line)
    except (ValueError, RecursionError):
        return None
    name, time = record.get("name"), record.get("time")
    return (name, time) if isinstance(name, str) and type(time) is int else None


def _with(value, key=b"x"):
    return b'{"name": "a", "time": 1, "%s": %s}' % (key, value)


DOUBTFUL = [
    b"",
    b" ",
    b"\x0c",
    b"{}",
    b"null",
    b"5",
    b'"name"',
    b"[]",
    b'[{"name": "a", "time": 1}]',
    b'{"x": {"name": "a", "time": 1}}',
    b'{"name": "a"}',
    LINE + LINE,
    LINE + b" x",
    LINE[:-1],
    LINE + b"}",
    b"\xef\xbb\xbf" + LINE,
    b"{'name': 'a', 'time': 1}",
    _with(b'"b"', b"name"),
    _with(b"2", b"time"),
    _with(b'"b"', b"n\\u0061me"),
    b'{"n\\u0061me": "a", "time": 1}',
    _with(b'{"name": "b"}'),
    _with(b'"name"'),
    b'{"name": 5, "time": 1}',
    b'{"name": 5, "time": 1, "x": {"name": "b"}}',
    b'{"name": true, "time": 1}',
    b'{"name": null, "time": 1}',
    b'{"name": ["a"], "time": 1}',
    b'{"name": {"a": 1}, "time": 1}',
    b'{"name": "\\ud83d", "time": 1}',
    b'{"name": "\\ud83dx", "time": 1}',
    b'{"name": "\\udc00", "time": 1}',
    b'{"name": "\\u0000", "time": 1}',
    b'{"name": "\xff", "time": 1}',
    b'{"name": "\xed\xa0\x80", "time": 1}',
    b'{"name": "a", "time": "1"}',
    b'{"name": "a", "time": 1.0}',
    b'{"name": "a", "time": 1e0}',
    b'{"name": "a", "time": true}',
    b'{"name": "a", "time": null}',
    b'{"name": "a", "time": [1]}',
    b'{"name": "a", "time": 01}',
    b'{"name": "a", "time": 9223372036854775808}',
    b'{"name": "a", "time": %s}' % (b"9" * 5000),
    _with(b"NaN"),
    _with(b"Inf"),
    _with(b"-Infinity"),
    _with(b"1e999"),
    _with(b"9" * 5000),
    _with(b"1."),
    _with(b".5"),
    _with(b"+5"),
    _with(b"1_0"),
    _with(b"tru"),
    _with(b'"\t"'),
    _with(b'"\x00"'),
    _with(b'"\\q"'),
    _with(b'"\\u12"'),
    _with(b'"\\ud83d\\ud83d"'),
    _with(b"[1,]"),
    _with(b"[" * 250 + b"]" * 250),
    _with(b"[" * 5000 + b"]" * 5000),
    _with(b'{"a":' * 2000),
]


@pytest.mark.parametrize("line", DOUBTFUL)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_no_line_that_the_parsers_could_read_otherwise_is_read_at_once(line, ending):
    block = ending.join([LINE, line, LINE, b""])
    parts = list(read_parts(block, FIELDS, GOOD))
    assert [(part, table) for part, table in parts] == [(block, None)]


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        b' \t{ "time"\t:\t1 , "name" :\t"a" } ',
        b'{"name": "\xf0\x9f\x98\x80 \\ud83d\\ude00 \\"\\\\/", "time": 9223372036854775807}',
        b'{"name": "a", "time": -0}',
        _with(b'"\\"name\\": \\"b\\""'),
        _with(b'"\\ud83dx"'),  # in a field that nobody reads
        _with(b'"\\u00e9\\u2014"'),
        _with(b"[{}, [], null, 1.5e300, -0.0, true, 18446744073709551616]"),
        _with(b"[" * 150 + b"]" * 150),
        _with(b'"\x7f\xc2\x85\xe2\x80\xa8"'),
    ],
)
def test_plain_lines_are_read_at_once(line):
    block = b"\n".join([LINE, line, LINE])
    ((part, table),) = read_parts(block, FIELDS, GOOD)
    assert part == block
    assert table.rows() == [("a", 1), _read_with_care(line), ("a", 1)]


def test_numbers_are_read_at_once_where_they_are_floats_or_integers():
    values = ["5", "5.0", "4.35", "1e-7", "9007199254740993", "0.30000000000000004", "-0.0"]
    block = "".join(f'{{"t": "x", "n": {value}}}\n' for value in values).encode()
    ((_, table),) = read_parts(block, {"t": pl.String, "n": pl.Float64}, pl.col("n") < 1e300)
    assert table["n"].to_list() == [float(value) for value in values]


def test_a_block_is_divided_until_the_doubtful_part_is_small(monkeypatch):
    monkeypatch.setattr(jsonlines, "_SMALL", 100)
    lines = [b'{"name": "%d", "time": %d}' % (n, n) for n in range(400)]
    lines[50], lines[333] = b"{", b'{"name": "a", "time": -1}'
    block = b"\n".join(lines)
    parts = list(read_parts(block, FIELDS, GOOD))
    assert b"".join(part for part, _ in parts) == block
    careful = [split_lines(part) for part, table in parts if table is None]
    assert len(careful) == 2
    assert b"{" in careful[0]
    assert lines[333] in careful[1]
    assert sum(map(len, careful)) < 20
    rows = [row for _, table in parts if table is not None for row in table.rows()]
    left = set().union(*careful)
    assert rows == [_read_with_care(line) for line in lines if line not in left]


TOKENS = [
    *[b'"name"', b'"time"', b'"x"', b'"n\\u0061me"', b'"a"', b'""', b'"\\ud83d"', b'"\\ud83dx"'],
    *[b"1", b"1.0", b"-1", b"1e2", b"01", b"null", b"true", b"NaN", b"9" * 30, b'"1"'],
    *[b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"\r", b"\t", b'"', b"\\", b"\xff", b"\x00"],
    *[
        b'{"name": "a", "time": 1',
        b', "name": "b"',
        b', "time": 2',
        b"}\n",
        b"}\r\n",
        LINE,
        b'"x": ',
    ],
]


@given(st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join), st.booleans())
def test_what_is_read_at_once_is_what_reading_with_care_gives(data, framed):
    block = LINE + b"\n" + data + b"\n" + LINE if framed else data
    if not block:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "_SMALL", 1)
        parts = list(read_parts(block, FIELDS, GOOD))
    assert b"".join(part for part, _ in parts) == block
    for part, table in parts:
        if table is not None:
            assert table.rows() == [_read_with_care(line) for line in split_lines(part)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"x", "not JSON (Expecting value at column 1)"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "JSON, but a list"),
    ],
)
def test_a_problem_is_described(line, problem):
    with pytest.raises((ValueError, RecursionError)) as error:
        parse_object(line)
    assert describe_problem(error.value) == problem


@pytest.mark.parametrize("name", ["B00005N7P0", "0", "a_b.c-d", "x" * 64])
def test_names_of_items_are_safe_as_file_names(name):
    assert parse_name({"asin": name}, "asin") == name


@pytest.mark.parametrize("name", ["", ".", "-a", "a/b", "a\n", "\u0661", "x" * 65, None, 5, ["a"]])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"asin .* is not 1 to 64 letters, digits, or _ \. -"):
        parse_name({"asin": name}, "asin")


def test_a_sample_is_what_is_well_formed_at_the_beginning(monkeypatch):
    monkeypatch.setattr(jsonlines, "SAMPLE_BYTES", 40)
    block = b"\n".join([b'{"a": 1}', b"x", b"", b"[]", b'{"a": 2}', b'{"a": 333333333333}'])
    assert parse_sample(block) == [{"a": 1}, {"a": 2}]
    assert parse_sample(json.dumps({"a": "x" * 99}).encode()) == []
