import gzip
import threading
import tracemalloc

import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.rawfile import BAD_LINE_SCHEMA, Quarantine, first_lines, read_blocks, split_lines

ROWS = b"B1,u1,5.0,1\nB2,u2,4.0,2\n"


def _write(folder, data):
    path = folder / "file.csv"
    path.write_bytes(data)
    return path


def _read(path, content="CSV"):
    return b"".join(read_blocks(path, content))


@pytest.mark.parametrize("size", [1, 5, 12, 13, 1000])
@pytest.mark.parametrize("tail", [b"", b"B3,u3,1.0,3", b"\n\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_blocks_are_whole_lines_and_make_up_the_file(tmp_path, monkeypatch, size, tail, pack):
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", size)
    monkeypatch.setattr(rawfile, "_check_content", lambda *_: None)
    blocks = list(read_blocks(_write(tmp_path, pack(ROWS + tail)), "CSV"))
    assert b"".join(blocks) == ROWS + tail
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_a_byte_order_mark_is_not_part_of_the_first_field(tmp_path):
    assert _read(_write(tmp_path, b"\xef\xbb\xbf" + ROWS)) == ROWS


@pytest.mark.parametrize("padding", [b"", b"\0" * 3, b"\0" * (1 << 20)])
def test_several_gzip_members_are_one_file(tmp_path, padding):
    members = [gzip.compress(part) for part in (b"", ROWS[:5], ROWS[5:], ROWS)]
    blocks = list(read_blocks(_write(tmp_path, padding.join(members) + padding), "CSV"))
    assert blocks == [2 * ROWS]


def test_what_follows_a_gzip_and_is_none_says_so(tmp_path):
    with pytest.raises(DataError, match=r"file.csv: the gzip is damaged \(.*header check"):
        _read(_write(tmp_path, gzip.compress(ROWS) + b"more"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_large_file_comes_in_blocks_of_bounded_size(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1 << 12)
    lines = b"".join(b"B%d,u,5.0,%d\n" % (n, n) for n in range(10_000))
    blocks = list(read_blocks(_write(tmp_path, pack(lines)), "CSV"))
    assert b"".join(blocks) == lines
    assert max(map(len, blocks)) <= 3 << 12
    assert min(map(len, blocks[:-1])) >= 1 << 11


def test_a_reader_that_is_left_alone_reads_no_further_than_two_blocks(tmp_path, monkeypatch):
    read = []
    pieces = rawfile._read

    def count(path):
        for piece in pieces(path):
            read.append(piece)
            yield piece

    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(rawfile, "_read", count)
    before = threading.active_count()
    blocks = read_blocks(_write(tmp_path, ROWS * 10_000), "CSV")
    next(blocks)
    blocks.close()
    assert 1 <= len(read) <= 1 + rawfile.BLOCKS_AHEAD
    assert threading.active_count() == before


def test_damage_is_reported_after_the_blocks_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1 << 12)
    lines = b"".join(b"B%d,u,5.0,%d\n" % (n * n, n) for n in range(10_000))
    blocks = read_blocks(_write(tmp_path, gzip.compress(lines)[:-9]), "CSV")
    found = []
    with pytest.raises(DataError, match="the gzip ends early"):
        found.extend(blocks)
    assert lines.startswith(b"".join(found))
    assert sum(map(len, found)) > len(lines) // 2
    assert list(blocks) == []


def test_first_lines_are_whole():
    assert first_lines(b"ab\r\ncd\nef", 7) == [b"ab", b"cd"]
    assert first_lines(b"ab\ncd", 5) == [b"ab", b"cd"]
    assert first_lines(b"abcdef\n", 3) == [b""]


def test_lines_end_with_lf_or_crlf():
    assert split_lines(b"a\r\n\nb,\rc\n") == [b"a", b"", b"b,\rc"]
    assert split_lines(b"a\nb") == [b"a", b"b"]


@pytest.mark.parametrize("keep", [3, 12, 30])
def test_a_truncated_gzip_says_so(tmp_path, keep):
    with pytest.raises(DataError, match=r"file.csv: the gzip ends early .*fetch it again"):
        _read(_write(tmp_path, gzip.compress(ROWS)[:keep]))


def test_a_damaged_gzip_says_so(tmp_path):
    packed = bytearray(gzip.compress(ROWS))
    packed[-6] ^= 0xFF
    with pytest.raises(DataError, match=r"file.csv: the gzip is damaged \(.*incorrect data check"):
        _read(_write(tmp_path, bytes(packed)))


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (b"<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"\n <html>\n<body>", "an HTML or XML page"),
        (b"PK\x03\x04abc", "a zip archive"),
        (b"BZh91AY", "a bzip2 file"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"%PDF-1.5", "a PDF"),
        (b"\x89PNG\r\n", "a PNG picture"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x80\x04\x95", "a Python pickle"),
        (gzip.compress(gzip.compress(ROWS)), "a gzip inside a gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (ROWS.decode().encode("utf-16-le"), "a binary file, or text in UTF-16"),
        (ROWS.decode().encode("utf-16"), "text in UTF-16"),
        (b"\xfe\xff" + ROWS.decode().encode("utf-16-be"), "text in UTF-16"),
        (b'{"asin": "B1"}\n{"asin": "B2"}\n', "JSON lines"),
        (b'{\n  "asin": "B1"\n}\n', "JSON spread over several lines"),
        (b'{"asin": "B1",\r\n "title": "x"}\r\n', "JSON spread over several lines"),
        (b'{"asin": {\n  "a": 1}\n}\n', "JSON spread over several lines"),
        (b'{"asin": "B1"\n}\n', "JSON spread over several lines"),
        (b'{"asin": "B1"\n{"asin": "B2"}\n', "JSON lines"),
        (b'[{"asin": "B1"}]', "JSON spread over several lines, or one JSON list"),
        (b"{'asin': 'B1'}\n", "Python literals"),
        (b"user_id:token\titem_id:token\n1\t2\n", "tab-separated lines"),
    ],
)
def test_another_file_under_the_right_name_is_named(tmp_path, data, looks_like):
    with pytest.raises(DataError, match=f"file.csv: expected CSV, but .* like {looks_like}"):
        _read(_write(tmp_path, data))


def test_ratings_under_the_name_of_metadata_are_named(tmp_path):
    with pytest.raises(DataError, match="expected JSON lines, but this looks like CSV"):
        _read(_write(tmp_path, ROWS), "JSON lines")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: No such file"):
        _read(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        _read(tmp_path)


def test_a_line_without_end_is_an_error_long_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(rawfile, "MAX_LINE_BYTES", 1 << 16)
    bomb = gzip.compress(ROWS + b"0" * (1 << 25))
    path = _write(tmp_path, bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match="a line has more than 65536 bytes; expected CSV"):
        _read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_quarantine_sets_lines_aside_up_to_its_limit(tmp_path):
    quarantine = Quarantine(tmp_path / "r.csv", "item,user", 2)
    quarantine.add(3, "1 field", b"x" * 500)
    quarantine.add(7, "empty", b"\xff\r\n")
    table = quarantine.table()
    assert table.schema == BAD_LINE_SCHEMA
    assert table.rows() == [
        ("r.csv", 3, "1 field", "x" * 200),
        ("r.csv", 7, "empty", "\N{REPLACEMENT CHARACTER}"),
    ]
    message = (
        r"r.csv:9: 0 fields; found 'a\\tb', expected item,user. Malformed lines so far: 3, "
        r"allowed: 2. Next: .*--max-bad-lines N"
    )
    with pytest.raises(DataError, match=message):
        quarantine.add(9, "0 fields", b"a\tb")
