import json

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline.released import MAX_ITEM_BYTES, find_released, read_released
from pipeline.splitting import assign_ids
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA

DAY = 86_400
ADA = [[2, DAY], [3, DAY], [1, DAY], [2, 5 * DAY]]
ZOE = [[1, 2 * DAY], [3, 2 * DAY], [2, 3 * DAY], [1, 4 * DAY], [3, 4 * DAY]]
ITEM_IDS = [["B1", 1], ["B2", 2], ["B3", 3]]
USER_IDS = [["zoe", 0], ["ada", 1]]
TEXTS = {
    "B1": "Title: Sea &amp; salt ; Brand: <b>Maldon</b> ; Description: ['Flakes.'] ; ",
    "B2": "Title: Pencil ; Description: [] ; ",
    "B3": "Asin: B3 ; ",
}
PREFIX = "./dataset/amazon-2018/preprocess/../processed/Mini"
ITEMS = {
    str(number): {"vision": vision, "text": f"{PREFIX}/texts/B{number}.txt"}
    for number, vision in enumerate([None, f"{PREFIX}/visions/B2.jpg", None], 1)
}


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


CONTENTS = {
    "test_seq.jsonl": _lines([[1, ADA], [0, ZOE]]),
    "eval_seq.jsonl": _lines([[1, ADA[:-1]], [0, ZOE[:-1]]]),
    "train_seq.jsonl": _lines([[1, ADA[:2]], [0, ZOE[:2]], [0, ZOE[:3]]]),
    "item2id.jsonl": _lines(ITEM_IDS),
    "user2id.jsonl": _lines(USER_IDS),
    "item.jsonl": json.dumps(ITEMS, indent=4),
}


def _write(folder, changes=None, texts=TEXTS):
    for name, content in (CONTENTS | (changes or {})).items():
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
    (folder / "texts").mkdir()
    for name, text in texts.items():
        (folder / "texts" / f"{name}.txt").write_text(text)
    return find_released(folder)


def test_users_items_and_the_order_of_events_stay_theirs(tmp_path):
    tables = read_released(_write(tmp_path))
    assert tables.items == ["B1", "B2", "B3"]
    assert tables.users == ["zoe", "ada"]
    assert tables.interactions.schema == RAW_INTERACTION_SCHEMA
    assert tables.interactions.rows()[:4] == [
        ("ada", "B2", None, DAY, 0),
        ("ada", "B3", None, DAY, 1),
        ("ada", "B1", None, DAY, 2),
        ("ada", "B2", None, 5 * DAY, 3),
    ]
    numbered = assign_ids(
        tables.interactions, tables.metadata, items=tables.items, users=tables.users
    )
    assert numbered.interactions.rows() == [
        (user, item, time) for user, events in enumerate([ZOE, ADA]) for item, time in events
    ]
    assert numbered.items["asin"].to_list() == ["B1", "B2", "B3"]
    assert numbered.users["user"].to_list() == ["zoe", "ada"]


def test_texts_are_found_by_name_and_say_title_and_brand(tmp_path):
    metadata = read_released(_write(tmp_path)).metadata
    assert metadata.schema == METADATA_SCHEMA
    assert metadata.rows() == [
        ("B1", "Sea & salt", "Maldon", TEXTS["B1"].strip(), []),
        ("B2", "Pencil", "", "Title: Pencil ; Description: [] ;", []),
        ("B3", "", "", "Asin: B3 ;", []),
    ]


def test_items_without_a_text_are_counted(tmp_path, caplog):
    metadata = read_released(_write(tmp_path, texts={"B2": TEXTS["B2"], "B1": " \n"})).metadata
    assert metadata["asin"].to_list() == ["B2"]
    assert caplog.messages == [f"{tmp_path / 'texts'}: 2 items have no text there"]


def test_a_text_of_any_size_and_bytes_is_bounded(tmp_path):
    files = _write(tmp_path)
    (tmp_path / "texts" / "B2.txt").write_bytes(b"Title: \xff" + b"x" * 300_000)
    assert read_released(files).metadata["text"].str.len_chars().to_list()[1] == 1 << 16


def test_a_text_that_cannot_be_read_is_an_error(tmp_path):
    files = _write(tmp_path, texts={})
    (tmp_path / "texts" / "B2.txt").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*B2\.txt: Is a directory"):
        read_released(files)


@pytest.mark.parametrize(
    "content", [CONTENTS["item.jsonl"], _lines({k: v} for k, v in ITEMS.items())]
)
def test_which_items_have_an_image_is_read_from_one_object_or_from_lines(tmp_path, content):
    files = _write(tmp_path, {"item.jsonl": content})
    assert read_released(files).has_image == [False, True, False]


def test_without_item_jsonl_it_is_not_known_which_items_have_an_image(tmp_path):
    files = _write(tmp_path, {"item.jsonl": None})
    assert files.items is None
    assert read_released(files).has_image is None


def test_the_longest_line_of_a_user_is_whole_in_a_merged_set(tmp_path):
    train = _lines([[0, ZOE[:2]], [0, ZOE[:3]], [0, ZOE], [1, ADA], [1, ADA[:2]]])
    changes = {"test_seq.jsonl": None, "eval_seq.jsonl": None, "train_seq.jsonl": train}
    files = _write(tmp_path, changes)
    assert files.sequences == (tmp_path / "train_seq.jsonl",)
    events = read_released(files).interactions
    assert events.group_by("user", maintain_order=True).len().rows() == [("zoe", 5), ("ada", 4)]
    assert events.filter(pl.col("user") == "zoe")["timestamp"].to_list() == [t for _, t in ZOE]


def test_files_are_found_and_named(tmp_path):
    (tmp_path / "text_feat.pth").write_bytes(b"")
    (tmp_path / "image_feat.pth").write_bytes(b"")
    files = _write(tmp_path)
    assert [path.name for path in files.files] == [
        "test_seq.jsonl",
        "eval_seq.jsonl",
        "train_seq.jsonl",
        "item2id.jsonl",
        "user2id.jsonl",
        "item.jsonl",
        "text_feat.pth",
        "image_feat.pth",
    ]
    assert files.features == {
        "text": tmp_path / "text_feat.pth",
        "image": tmp_path / "image_feat.pth",
    }
    (tmp_path / "eval_seq.jsonl").rename(tmp_path / "valid_seq.jsonl")
    (tmp_path / "texts").rename(tmp_path / "text")
    files = find_released(tmp_path)
    assert files.sequences[1] == tmp_path / "valid_seq.jsonl"
    assert files.texts == tmp_path / "text"
    (tmp_path / "test_seq.jsonl").unlink()
    assert find_released(tmp_path) is None  # whole sequences are nowhere
    assert find_released(tmp_path / "text") is None


def test_items_that_nothing_is_said_of_are_an_error(tmp_path):
    _write(tmp_path, texts={})
    (tmp_path / "texts").rmdir()
    with pytest.raises(DataError, match=r"nothing says what the items are, neither texts/ nor"):
        find_released(tmp_path)
    (tmp_path / "text_feat.pth").write_bytes(b"")
    assert read_released(find_released(tmp_path)).metadata.is_empty()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_seq", _lines([[1, ADA], [0, ZOE], [1, ADA]]), r"jsonl:3: user 1 has two lines"),
        ("test_seq", _lines([[1, ADA]]), "1 of 2 users have no sequence, user 0 among them"),
        ("test_seq", _lines([[2, ADA]]), r"jsonl:1: user 2 is not in 0\.\.1"),
        ("test_seq", _lines([[True, ADA]]), r"found \[True, .*, expected \[user, \[\[item, time"),
        ("test_seq", _lines([[0, []]]), r"found \[0, \[\]\], expected \[user"),
        ("test_seq", _lines([{"0": ADA}]), r"jsonl:1: found \{'0'.*, expected \[user"),
        ("test_seq", _lines([[0, ADA, 1]]), r"jsonl:1: found \[0, .*, expected \[user"),
        ("test_seq", _lines([[0, [[4, DAY]]]]), r"jsonl:1: user 0: item 4 is not in 1\.\.3"),
        ("test_seq", _lines([[0, [[0, DAY]]]]), r"item 0 is not in 1\.\.3"),
        ("test_seq", _lines([[0, [[1, 1.5]]]]), r"\[\[1, 1.5\]\] are not pairs of integers"),
        ("test_seq", _lines([[0, [["1", 1]]]]), "are not pairs of integers, item and time"),
        ("test_seq", _lines([[0, [[1, 10**30]]]]), "are not pairs of integers, item and time"),
        ("test_seq", _lines([[0, [[1, 1], [1]]]]), "are not pairs of integers, item and time"),
        ("test_seq", _lines([[0, [[1, 1, 1]]]]), "are not pairs of integers, item and time"),
        ("test_seq", _lines([[0, [1, 1]]]), "are not pairs of integers, item and time"),
        ("test_seq", _lines([[0, [[1, 10**12]]]]), r"a time is not in 0\.\.4102444800 \(Unix"),
        ("test_seq", _lines([[0, [[1, -1]]]]), "a time is not in .*found -1 to -1"),
        ("test_seq", _lines([[0, [[1, 2], [1, 1]]]]), "user 0: the events are not in the order"),
        ("test_seq", "<html>\n", "jsonl:1: found b'<html>.*expected a line of JSON"),
        ("test_seq", "[" * 100_000, r"jsonl:1: found b'\[\[.*expected a line of JSON"),
        ("eval_seq", _lines([[1, ADA[1:]]]), "eval_seq.jsonl:1: the events of user 1 are not the"),
        ("eval_seq", _lines([[1, [*ADA, [1, 9 * DAY]]]]), "user 1 has more events than in .*test"),
        ("train_seq", _lines([[0, ZOE[:2]], [0, ADA[:2]]]), "train_seq.jsonl:2: the events of"),
        ("item2id", _lines([*ITEM_IDS[:2], ["B3", 4]]), r"3 different names with the ids 1\.\.3"),
        ("item2id", _lines([["B1", 0], *ITEM_IDS[1:]]), r"3 different names with the ids 1\.\.3"),
        ("item2id", _lines([["B2", 1], *ITEM_IDS[1:]]), r"3 different names with the ids 1\.\.3"),
        ("item2id", _lines([*ITEM_IDS, ["B4", 3]]), "item2id.jsonl:4: id 3 is there twice"),
        ("item2id", _lines([["../x", 1]]), r"item2id.jsonl:1: found \['\.\./x', 1\], expected \[n"),
        ("item2id", _lines([["B1", "1"]]), r"found \['B1', '1'\], expected \[name, id\]"),
        ("user2id", _lines([["zoe", 1], ["ada", 2]]), r"2 different names with the ids 0\.\.1"),
        ("item", json.dumps({"1": {}, "2": {}}), r"expected JSON objects with the keys 1\.\.3"),
        ("item", "[]", r"item.jsonl: found b'\[\]', expected JSON objects"),
        ("item", "[1]\n{}\n", r"item.jsonl: found b'\[1\].*expected JSON objects"),
        ("item", "nothing\n", "item.jsonl:1: found b'nothing.*expected a line of JSON"),
        ("item", json.dumps(ITEMS | {"2": "x"}), "item 2 is 'x', not an object"),
        ("item", b" " * (4 * MAX_ITEM_BYTES + 1), "more than 16384 bytes for 3 items"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_an_error(tmp_path, name, content, message):
    files = _write(tmp_path, {f"{name}.jsonl": content})
    with pytest.raises(DataError, match=message):
        read_released(files)


def test_a_line_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.released.MAX_LINE_BYTES", 60)
    files = _write(tmp_path)
    with pytest.raises(DataError, match=r"test_seq\.jsonl:2: more than 60 bytes"):
        read_released(files)
