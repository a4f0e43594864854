import gzip

import pytest

from mmm4rec.errors import DataError
from pipeline.atomic_table import read_header, read_items, read_table
from pipeline.tables import METADATA_SCHEMA

AMAZON = (
    "item_id:token\tprice:float\tbrand:token\ttitle:token\tcategories:token_seq\t"
    "sales_type:token\timage_url:token\tparent_id:token\tyear:token\n"
    "B2\t9.5\tFaber\tPencil &amp; <b>rubber</b>\tOffice, Pencils\tOffice Products\thttp://x\tA\t1999\n"
    "B1\t\t\tSea salt.\t\t\t\t\t\n"
    "B3\t1\tMaldon\t\tGrocery\t\t\t\t\n"
    "B4\t\t\t\t\t\t\t\t2001\n"
)


def _items(folder, content, ending="item"):
    path = folder / f"Set.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_items(path)


def test_texts_are_put_together_from_the_columns_of_words(tmp_path):
    items = _items(tmp_path, AMAZON)
    assert items.schema == METADATA_SCHEMA
    assert items.rows() == [
        ("B1", "Sea salt.", "", "Sea salt.", []),
        (
            "B2",
            "Pencil & rubber",
            "Faber",
            "Pencil & rubber. Faber. Office, Pencils. Office Products.",
            [],
        ),
        ("B3", "", "Maldon", "Maldon. Grocery.", []),
        ("B4", "", "", "B4", []),
    ]


def test_the_title_may_have_another_name(tmp_path):
    films = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n"
    )
    assert _items(tmp_path, films).rows() == [
        ("1", "Toy Story", "", "Toy Story. Animation Comedy.", [])
    ]


def test_a_brand_name_is_no_title(tmp_path):
    items = _items(tmp_path, "item_id:token\tbrand_name:token\tname:token\n1\tFaber\tPencil\n")
    assert items.row(0) == ("1", "Pencil", "Faber", "Pencil. Faber.", [])


@pytest.mark.parametrize("ending", ["item", "text"])
def test_the_last_line_about_an_item_holds(tmp_path, ending):
    content = "item_id:token\ttext:token_seq\nB1\tOld words\nB1\tNew words\n"
    assert _items(tmp_path, content, ending)["text"].str.contains("New words").to_list() == [True]


def test_a_gzipped_file_is_read(tmp_path):
    items = _items(tmp_path, gzip.compress(AMAZON.encode()))
    assert items["asin"].to_list() == ["B1", "B2", "B3", "B4"]


def test_the_header_says_names_and_types(tmp_path):
    path = tmp_path / "Set.item"
    path.write_text("item_id:token\tplain\trating:float\n")
    assert read_header(path) == {"item_id": "token", "plain": "", "rating": "float"}
    assert list(read_table(path, ("plain",))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "item_id:token\tprice:float\timage_url:token\nB1\t1\tx\n",
            "item:1: no column has texts, found item_id, price, image_url; expected columns of the",
        ),
        ("name:token\ttitle:token\nB1\tx\n", "has the columns name, title; expected item_id"),
        ("item_id:token\ta:token\ta:float\nB1\tx\t1\n", "item:1: the header names a column twice"),
        ("item_id:token\ttitle:token\nB1\n", "item:2: 1 fields, the header has 2"),
        (b"item_id:token\ttitle:token\nB1\t\xff\n", "item:2: not UTF-8 text"),
        ("<html>\n", "expected tab-separated lines, but this looks like an HTML or XML page"),
    ],
)
def test_an_item_file_that_is_not_of_the_format_is_an_error(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        _items(tmp_path, content)
