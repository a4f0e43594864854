import gzip
import random

import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.amazon import read_interactions
from pipeline.ratings import Ratings
from pipeline.rawfile import LATEST, Quarantine
from pipeline.tables import RAW_INTERACTION_SCHEMA

GOOD = b"B1,u1,5.0,1005177600\nB2,u2,3,0\n"
HEADER = b"user_id,parent_asin,rating,timestamp\n"
GOOD_2023 = HEADER + b"u1,B1,5.0,1005177600999\nu2,B2,3,0\n"


def _write(path, data, pack=bytes):
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_ratings_are_read_plain_or_gzipped_with_either_line_end(tmp_path, pack, ending):
    data = GOOD.replace(b"\n", ending)
    read = read_interactions(_write(tmp_path / "X.csv", data, pack))
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
        read = read_interactions(path)
        assert read.rows.rows() == [
            (u, a, float(r), int(t), p) for p, (a, u, r, t) in enumerate(expected)
        ]
        assert read.lines == 300


def test_blank_lines_are_no_rows_but_count_in_the_position(tmp_path):
    read = read_interactions(_write(tmp_path / "X.csv", b"B1,u,5.0,1\n\r\n \nB2,u,5.0,2\n\n"))
    assert read.rows["position"].to_list() == [0, 3]
    assert read.lines == 5


def test_quotes_and_comment_signs_are_characters_of_names(tmp_path):
    read = read_interactions(_write(tmp_path / "X.csv", b'#B1,"u,5.0,1\nB2,u"x,5.0,2\n'))
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
        read_interactions(path)
    assert str(error.value).startswith(f"{path}:3: {reason}")
    assert "--max-bad-lines N" in str(error.value)


def test_malformed_ratings_are_set_aside_where_allowed(tmp_path):
    bad = [line for line, _ in BAD_RATINGS]
    path = _write(tmp_path / "X.csv", GOOD + b"\n".join(bad) + b"\r\n" + GOOD)
    read = read_interactions(path, max_bad_lines=len(bad))
    assert read.rows["position"].to_list() == [0, 1, len(bad) + 2, len(bad) + 3]
    assert read.bad_lines["line"].to_list() == list(range(3, len(bad) + 3))
    assert [r.split(" (")[0] for r in read.bad_lines["reason"]] == [r for _, r in BAD_RATINGS]
    assert read.bad_lines["text"][0] == "B1,u1,5.0"
    with pytest.raises(DataError, match=f"so far: {len(bad)}, allowed: {len(bad) - 1}"):
        read_interactions(path, max_bad_lines=len(bad) - 1)


# The 2023 release


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1 << 23, 30])
def test_ratings_of_2023_have_a_header_and_milliseconds(tmp_path, monkeypatch, ending, size):
    path = _write(tmp_path / "X.csv.gz", GOOD_2023.replace(b"\n", ending), gzip.compress)
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", size)
    read = read_interactions(path, release="2023")
    assert read.rows.rows() == [("u1", "B1", 5.0, 1005177600, 1), ("u2", "B2", 3.0, 0, 2)]
    assert read.rows.schema == RAW_INTERACTION_SCHEMA
    assert (read.lines, read.bad_lines.height) == (3, 0)


def test_a_header_alone_gives_no_rows(tmp_path):
    read = read_interactions(_write(tmp_path / "X.csv", HEADER), release="2023")
    assert read.rows.schema == RAW_INTERACTION_SCHEMA
    assert (read.rows.height, read.lines) == (0, 1)


def test_a_malformed_rating_of_2023_names_its_columns_and_unit(tmp_path):
    path = _write(tmp_path / "X.csv", GOOD_2023 + b"u1,B1,5.0,4102444800001\n")
    with pytest.raises(DataError, match="expected user,item,rating,Unix milliseconds") as error:
        read_interactions(path, release="2023")
    reason = "timestamp 4102444800001 is not in 0..4102444800000 (Unix milliseconds until 2100)"
    assert str(error.value).startswith(f"{path}:4: {reason}")
    read = read_interactions(path, release="2023", max_bad_lines=1)
    assert read.rows["position"].to_list() == [1, 2]
    assert read.bad_lines["line"].to_list() == [4]


# Lines that the parser of CSV would read otherwise

ODD_LINES = [
    b"B1,u1, 5.0,1",
    b"B1,u1,5.0, 1",
    b"B1,u1,5.0,\t1",
    b"B1\r,u1,5.0,1",
    b"B1,u1,5.0\r,1",
    b"\xef\xbb\xbfB1,u1,5.0,1",
    b"B1,u\xef\xbf\xbd,5.0,1",
    b"B 1, u1 ,5.0,1",
    b"B1,u1,+5.,+1",
    b"B1,u1,-.5,-0",
    b"B1,u1,5.0,1\r",
    b"B1,u1,5.0,1\r\r",
    b"B1,null,5e0,007",
    b"",
    b"\x0c",
    b"\xc2\xa0",
]


@pytest.mark.parametrize("line", ODD_LINES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_block_read_at_once_is_what_reading_with_care_gives(tmp_path, line, place):
    lines = [b"B8,u8,1,8", b"B9,u9,1,9"]
    lines.insert(0 if place == "first" else 2, line)
    for ending in (b"\n", b"\n\n"):
        block, parser = b"\n".join(lines) + ending, Ratings("2018")
        quarantines = [Quarantine(tmp_path, "", 9) for _ in range(2)]
        table, count = parser.parse(block, 70, quarantines[0])
        expected, expected_count = parser._parse_with_care(block, 70, quarantines[1])
        assert table.equals(expected)
        assert (count, quarantines[0].table().rows()) == (
            expected_count,
            quarantines[1].table().rows(),
        )


# Other files


@pytest.mark.parametrize(
    ("data", "release", "message"),
    [
        (
            GOOD_2023,
            "2018",
            "expected ratings of the 2018 release, .* of the 2023 .*--release 2023",
        ),
        (GOOD, "2023", "expected ratings of the 2023 release, .* of the 2018 .*--release 2018"),
        (
            b"a,b,c,d\n" + GOOD,
            "2018",
            "2018 release have no header, but this begins with 'a,b,c,d'",
        ),
        (b"a,b,c,d\n" + GOOD, "2023", "first line of .* is user_id,parent_asin,.* is 'a,b,c,d'"),
        (b"\n" + GOOD_2023, "2023", "first line of ratings of the 2023 release .* here it is ''"),
        (
            b"B1,u1,5.0,1005177600000\nB1,u1,5.0,1005177600001\n",
            "2018",
            r"times of the 2018 release are seconds, but these look like milliseconds "
            r"\(1005177600000\)",
        ),
        (
            HEADER + b"u1,B1,5.0,1005177600\n",
            "2023",
            r"times of the 2023 release are milliseconds, but these look like seconds "
            r"\(1005177600\). Next: --release 2018",
        ),
    ],
)
def test_another_file_or_unit_is_named(tmp_path, data, release, message):
    with pytest.raises(DataError, match=f"X.csv: .*{message}"):
        read_interactions(_write(tmp_path / "X.csv", data), release=release, max_bad_lines=99)


def test_one_time_in_another_unit_is_a_malformed_line(tmp_path):
    path = _write(tmp_path / "X.csv", b"B1,u1,5.0,1005177600000\n" + GOOD)
    read = read_interactions(path, max_bad_lines=1)
    assert read.bad_lines["line"].to_list() == [1]
