import gzip
import json
import random

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.metadata import read_metadata
from pipeline.tables import METADATA_SCHEMA


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _read_metadata(tmp_path, records, **kwargs):
    data = records if isinstance(records, bytes) else _lines(records)
    path = tmp_path / "meta_X.json.gz"
    path.write_bytes(gzip.compress(data))
    return read_metadata(path, **kwargs)


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
    with pytest.raises(DataError, match="expected a JSON object with asin") as error:
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


# The 2023 release

IMAGES = [
    {"thumb": "t2", "large": "l2", "variant": "PT01", "hi_res": None},
    {"thumb": "t1", "large": "l1", "variant": "MAIN", "hi_res": "h1"},
    {"thumb": "t3", "large": "l3", "variant": "PT02", "hi_res": "h3"},
]
ITEM_2023 = {
    "parent_asin": "B1",
    "title": "Sea &amp; Salt",
    "store": "Maldon",
    "features": ["Vegan", "250 g"],
    "description": ["Fine flakes"],
    "categories": ["Grocery", "Salt &amp; Pepper"],
    "images": IMAGES,
    "main_category": "Grocery",
    "average_rating": 4.5,
    "details": {"Package": "1"},
}
ITEM_2018 = {
    "asin": "B1",
    "title": "Sea &amp; Salt",
    "brand": "Maldon",
    "feature": ["Vegan", "250 g"],
    "description": ["Fine flakes"],
    "category": ["Grocery", "Salt &amp; Pepper"],
    "imageURL": ["h1", "h3", "l1", "l2", "l3", "t1", "t2", "t3"],
}


@pytest.mark.parametrize("change", [{}, {"title": None}, {"title": "", "description": []}])
@pytest.mark.parametrize("template", ["clean", "official"])
def test_metadata_of_2023_says_what_that_of_2018_says(tmp_path, change, template):
    read = _read_metadata(tmp_path, [ITEM_2023 | change], release="2023", template=template)
    expected = _read_metadata(tmp_path, [ITEM_2018 | change], template=template)
    assert read.rows.equals(expected.rows)
    assert read.rows.schema == METADATA_SCHEMA
    assert read.asins.to_list() == ["B1"]


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        {key: [image[key] for image in IMAGES] for key in ("thumb", "large", "variant", "hi_res")},
    ],
)
def test_images_of_2023_are_the_largest_first_and_of_a_size_the_main_one(tmp_path, images):
    row = _read_metadata(tmp_path, [ITEM_2023 | {"images": images}], release="2023").rows.row(0)
    assert row[4] == ["h1", "h3", "l1", "l2", "l3", "t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("images", "urls"),
    [
        ({"hi_res": ["a", None], "large": ["b"], "thumb": 5}, ["a", "b"]),
        ({"hi_res": ["a", "b"], "variant": ["X"]}, ["a", "b"]),
        (
            [None, "x", {"hi_res": "a", "thumb": ["z"]}, {"large": "c", "variant": {"a": 1}}],
            ["a", "c"],
        ),
        ([], []),
        ({}, []),
        ("x", []),
        (5, []),
        (None, []),
    ],
)
def test_images_of_any_type_are_read(tmp_path, images, urls):
    read = _read_metadata(tmp_path, [ITEM_2023 | {"images": images}], release="2023")
    assert read.rows["image_urls"][0].to_list() == urls


# Other files and blocks

REVIEW = {"reviewerID": "u1", "asin": "B1", "overall": 4, "unixReviewTime": 86_400}
REVIEW_2023 = {"user_id": "u1", "asin": "B1", "parent_asin": "B1", "rating": 4, "timestamp": 86_400}


@pytest.mark.parametrize(
    ("record", "release", "message"),
    [
        (ITEM_2023, "2018", "metadata of the 2018 .* metadata of the 2023 .*Next: --release 2023"),
        (ITEM_2018, "2023", "metadata of the 2023 .* metadata of the 2018 .*Next: --release 2018"),
        (REVIEW, "2018", "metadata of the 2018 .* reviews of the 2018 .*each file its own name"),
        (REVIEW_2023, "2023", "metadata of the 2023 .* reviews of the 2023 .*its own name"),
    ],
)
def test_another_file_under_the_name_of_metadata_is_named(tmp_path, record, release, message):
    with pytest.raises(DataError, match=f"meta_X.json.gz: expected {message}"):
        _read_metadata(tmp_path, [record] * 3, release=release, max_bad_lines=9)


def test_a_first_line_of_another_kind_is_one_malformed_line(tmp_path):
    records = [ITEM_2018, ITEM_2023, ITEM_2023 | {"parent_asin": "B2"}]
    read = _read_metadata(tmp_path, records, release="2023", max_bad_lines=1)
    assert read.asins.to_list() == ["B1", "B2"]
    assert read.bad_lines["line"].to_list() == [1]


@pytest.mark.parametrize("keep", [None, ["B3", "B77", "B150", "B30"], []])
@pytest.mark.parametrize("size", [100, 1000, 1 << 23])
def test_metadata_is_the_same_whatever_the_block_size(tmp_path, monkeypatch, keep, size):
    titles = {f"B{n % 200}": f"T {n}" for n in range(300)}  # of an item the last one holds
    lines = [json.dumps({"title": f"T {n}", "asin": f"B{n % 200}"}).encode() for n in range(300)]
    lines[230] = lines[230][:-1]  # not whole: what line 30 says of the item holds
    lines.insert(55, b"")
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", size)
    read = _read_metadata(tmp_path, b"\n".join(lines), keep=keep, max_bad_lines=1)
    expected = titles | {"B30": "T 30"}
    assert read.asins.to_list() == sorted(expected)
    assert dict(zip(read.rows["asin"], read.rows["title"], strict=True)) == {
        asin: title for asin, title in expected.items() if keep is None or asin in keep
    }
    assert read.bad_lines["line"].to_list() == [232]
    assert read.lines == 301
