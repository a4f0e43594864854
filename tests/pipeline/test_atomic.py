import pytest

from mmm4rec.errors import DataError
from pipeline.atomic import AtomicFiles, find_atomic, read_atomic
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA

SEQUENCES = "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 0\t1\n0\t1\t0\n"
TEXT = (
    "item_id:token\ttext:token_seq\n"
    "B3\tSea salt flakes 250 g. Grocery Salt. Maldon. \n"
    "B1\tNo. 5 pencil. Office Pencils. Faber. \n"
    "B2\t \n"
)
ITEMS = "B3\t0\nB1\t1\nB2\t2\n"
USERS = "zoe\t0\nada\t1\n"


def _write(folder, **changes):
    contents = {"test.inter": SEQUENCES, "text": TEXT, "item2index": ITEMS, "user2index": USERS}
    contents |= {name.replace("_", "."): content for name, content in changes.items()}
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"Set.{name}").write_bytes(data)
    files = find_atomic(folder, "Set")
    assert files is not None
    return files


def test_sequences_become_interactions_in_the_order_of_the_file(tmp_path):
    tables = read_atomic(_write(tmp_path))
    assert tables.interactions.rows() == [
        ("ada", "B2", None, None, 0),
        ("ada", "B3", None, None, 1),
        ("ada", "B1", None, None, 2),
        ("zoe", "B1", None, None, 3),
        ("zoe", "B3", None, None, 4),
    ]
    assert tables.interactions.schema == RAW_INTERACTION_SCHEMA
    assert tables.items == ["B3", "B1", "B2"]
    assert tables.users == ["zoe", "ada"]


def test_texts_stay_as_given_and_the_title_is_their_first_sentence(tmp_path):
    metadata = read_atomic(_write(tmp_path)).metadata
    assert metadata.rows() == [
        ("B1", "No. 5 pencil. Office Pencils", "", "No. 5 pencil. Office Pencils. Faber.", []),
        ("B2", "B2", "", "B2", []),
        ("B3", "Sea salt flakes 250 g", "", "Sea salt flakes 250 g. Grocery Salt. Maldon.", []),
    ]
    assert metadata.schema == METADATA_SCHEMA


def test_windows_line_ends_change_nothing(tmp_path):
    files = _write(tmp_path, test_inter=SEQUENCES.replace("\n", "\r\n"), item2index="\n" + ITEMS)
    assert read_atomic(files).interactions["asin"].to_list() == ["B2", "B3", "B1", "B1", "B3"]


def test_single_events_have_names_and_optional_columns(tmp_path):
    (tmp_path / "Set.text").write_text(TEXT)
    inter = tmp_path / "Set.inter"
    inter.write_text(
        "rating:float\titem_id:token\tuser_id:token\ttimestamp:float\textra:token\n"
        "4.5\tB1\tada\t1000.0\tx\n3\tB2\tzoe\t1.5e3\ty\n"
    )
    files = find_atomic(tmp_path, "Set")
    assert files == AtomicFiles(inter, tmp_path / "Set.text")
    assert files.files == (inter, tmp_path / "Set.text")
    tables = read_atomic(files)
    assert tables.interactions.rows() == [
        ("ada", "B1", 4.5, 1000, 0),
        ("zoe", "B2", 3.0, 1500, 1),
    ]
    assert (tables.items, tables.users) == (None, None)
    inter.write_text("user_id:token\titem_id:token\nada\tB1\n")
    assert read_atomic(files).interactions.rows() == [("ada", "B1", None, None, 0)]


def test_a_set_is_found_only_when_all_its_files_are_there(tmp_path):
    files = _write(tmp_path)
    assert [path.name for path in files.files] == [
        "Set.test.inter",
        "Set.text",
        "Set.item2index",
        "Set.user2index",
    ]
    files.files[-1].unlink()
    assert find_atomic(tmp_path, "Set") is None


HEADER = SEQUENCES.split("\n")[0] + "\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_inter": HEADER + "0\t1 x\t2\n"}, r"inter:2: item: '1 x 2' is not made of integers"),
        ({"test_inter": HEADER + "0\t1 2\t\n"}, r"inter:2: item: '1 2 ' is not made of integers"),
        ({"test_inter": HEADER + "0\t1\t3\n"}, r"item: 3 is not in the index, which has 0\.\.2"),
        ({"test_inter": HEADER + "0\t-1\t1\n"}, r"item: -1 is not in the index"),
        ({"test_inter": HEADER + "2\t1\t1\n"}, r"user_id: 2 is not in the index"),
        ({"test_inter": HEADER + f"0\t{'9' * 30}\t1\n"}, "item: '99.* is not made of integers"),
        ({"test_inter": HEADER + "0\t1\t1\n0\t1\t2\n"}, "a user has two lines"),
        ({"test_inter": HEADER + "0\t1\n"}, "inter:2: 2 fields, the header has 3"),
        ({"test_inter": "user\titem\n0\t1\n"}, "inter:1: the header has the columns user, item;"),
        ({"text": "a\tb\n1\t2\n"}, "text:1: the header has the columns a, b; expected item_id"),
        ({"text": TEXT + "B9\tx\ty\n"}, "text:5: 3 fields, the header has 2"),
        ({"text": TEXT.encode() + b"B9\t\xff\n"}, "text:5: not UTF-8 text"),
        ({"text": ""}, "text: expected tab-separated lines, but this looks like an empty file"),
        ({"item2index": "B1\t0\nB2\n"}, r"item2index:2: found \['B2'\], expected a name, a tab"),
        ({"item2index": "B1\t0\nB2\tx\n"}, r"item2index:2: found \['B2', 'x'\]"),
        ({"item2index": "B1\t0\nB2\t2\n"}, r"expected 2 names with the numbers 0\.\.1, each"),
        ({"item2index": "B1\t1\nB2\t1\n"}, r"expected 2 names with the numbers 0\.\.1, each"),
        ({"item2index": "B1\t0\nB1\t1\n"}, r"expected 2 names with the numbers 0\.\.1, each"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_an_error(tmp_path, changes, message):
    files = _write(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_atomic(files)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ada\tB1\tx\t1", "inter:2: rating 'x' is not a finite number"),
        ("ada\tB1\t5\tinf", "inter:2: timestamp 'inf' is not a finite number"),
        ("ada\tB1\t5\t1e12", r"inter:2: timestamp 1e12 is not in 0\.\.4102444800 \(Unix seconds"),
        ("ada\tB1\t5\t-1", r"inter:2: timestamp -1 is not in"),
    ],
)
def test_a_malformed_event_is_an_error(tmp_path, row, message):
    (tmp_path / "Set.text").write_text(TEXT)
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (tmp_path / "Set.inter").write_text(header + row + "\n")
    files = find_atomic(tmp_path, "Set")
    with pytest.raises(DataError, match=message):
        read_atomic(files)
