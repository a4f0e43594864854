import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("missing", ["text", "item"])
def test_items_are_described_by_text_or_item_files(tmp_path, missing):
    _write(tmp_path, item="item_id:token\ttitle:token\nB1\tPencil\n")
    assert find_atomic(tmp_path, "Set").text == tmp_path / "Set.text"
    (tmp_path / f"Set.{missing}").unlink()
    left = {"text": "item", "item": "text"}[missing]
    assert find_atomic(tmp_path, "Set").text == tmp_path / f"Set.{left}"


def test_interactions_of_items_that_nothing_is_said_of_are_an_error(tmp_path):
    (tmp_path / "Set.inter").write_text("user_id:token\titem_id:token\nada\tB1\n")
    with pytest.raises(DataError, match=r"nothing says what its items are. Next: put Set\.text or"):
        find_atomic(tmp_path, "Set")


def test_text_features_say_what_items_are(tmp_path):
    files = _write(tmp_path, feat1CLS=b"", feat3CLS=b"")
    assert files.features == {
        "text": tmp_path / "Set.feat1CLS",
        "image": tmp_path / "Set.feat3CLS",
    }
    assert files.files[-2:] == (tmp_path / "Set.feat1CLS", tmp_path / "Set.feat3CLS")
    (tmp_path / "Set.text").unlink()
    files = find_atomic(tmp_path, "Set")
    assert files.text is None
    tables = read_atomic(files)
    assert tables.metadata.is_empty()
    assert tables.metadata.schema == METADATA_SCHEMA
    assert tables.items == ["B3", "B1", "B2"]
    (tmp_path / "Set.feat1CLS").unlink()
    with pytest.raises(DataError, match="nothing says what its items are"):
        find_atomic(tmp_path, "Set")


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


SPLIT_HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def test_the_splits_of_single_events_are_put_together(tmp_path):
    (tmp_path / "Set.text").write_text(TEXT)
    rows = {
        "train": "ada\tB1\t10\nzoe\tB3\t11\n",
        "valid": "ada\tB2\t20\n",
        "test": "ada\tB1\t30\n",
    }
    for split, content in rows.items():
        (tmp_path / f"Set.{split}.inter").write_text(SPLIT_HEADER + content)
    files = find_atomic(tmp_path, "Set")
    assert [path.name for path in files.files] == [
        "Set.test.inter",
        "Set.text",
        "Set.train.inter",
        "Set.valid.inter",
    ]
    tables = read_atomic(files)
    assert tables.interactions.rows() == [
        ("ada", "B1", None, 10, 0),
        ("zoe", "B3", None, 11, 1),
        ("ada", "B2", None, 20, 2),
        ("ada", "B1", None, 30, 3),
    ]
    assert (tables.items, tables.users) == (None, None)
    (tmp_path / "Set.train.inter").unlink()
    assert find_atomic(tmp_path, "Set") is None


def test_events_are_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.atomic._CHUNK_ROWS", 2)
    (tmp_path / "Set.text").write_text(TEXT)
    rows = "".join(f"u{n}\tB1\t{n}\n" for n in range(5))
    (tmp_path / "Set.inter").write_text(SPLIT_HEADER + rows)
    events = read_atomic(find_atomic(tmp_path, "Set")).interactions
    assert events.schema == RAW_INTERACTION_SCHEMA
    assert events["position"].to_list() == events["timestamp"].to_list() == list(range(5))


def test_sequences_without_their_indexes_are_an_error(tmp_path):
    (tmp_path / "Set.text").write_text(TEXT)
    for split in ("train", "test"):
        (tmp_path / f"Set.{split}.inter").write_text(SEQUENCES)
    with pytest.raises(DataError, match=r"train\.inter:2: sequences of numbers, but the names"):
        read_atomic(find_atomic(tmp_path, "Set"))


def _unisrec(folder, sequences, limit):
    """Write sequences as UniSRec does: at most `limit` items before a target, latest first."""
    splits = {
        "test": lambda n: [n - 1],
        "valid": lambda n: [n - 2],
        "train": lambda n: range(n - 3, 0, -1),
    }
    for split, targets_of in splits.items():
        lines = [HEADER]
        for user, sequence in enumerate(sequences):
            for at in targets_of(len(sequence)):
                before = " ".join(map(str, sequence[max(0, at - limit) : at]))
                lines.append(f"{user}\t{before}\t{sequence[at]}\n")
        (folder / f"Set.{split}.inter").write_text("".join(lines))
    for ending, count in (("item2index", 9), ("user2index", len(sequences))):
        (folder / f"Set.{ending}").write_text("".join(f"n{n}\t{n}\n" for n in range(count)))
    (folder / "Set.text").write_text(TEXT)


def _histories(tables):
    grouped = tables.interactions.group_by("user", maintain_order=True).agg("asin")
    return [[int(name[1:]) for name in names] for names in grouped["asin"].to_list()]


LONG = [0, 1, 2, 0, 1, 2, 3, 4, 4, 4]  # ten events; a line has at most five of them
SHORT = [5, 6, 7, 8, 5]


@given(
    sequences=st.lists(
        st.lists(st.integers(0, 2), min_size=3, max_size=14), min_size=1, max_size=4
    ),
    limit=st.integers(2, 6),
)
def test_what_was_cut_from_a_sequence_is_taken_from_the_training_lines(
    tmp_path_factory, sequences, limit
):
    folder = tmp_path_factory.mktemp("unisrec")
    _unisrec(folder, sequences, limit)
    tables = read_atomic(find_atomic(folder, "Set"))
    assert _histories(tables) == sequences
    assert tables.cut_users == 0


def test_without_training_lines_the_users_who_may_lack_events_are_counted(tmp_path, caplog):
    _unisrec(tmp_path, [LONG, SHORT], limit=4)
    (tmp_path / "Set.train.inter").unlink()
    tables = read_atomic(find_atomic(tmp_path, "Set"))
    # The validation line says that the short one is whole, and one event more of the long one.
    assert _histories(tables) == [LONG[-6:], SHORT]
    assert tables.cut_users == 1
    (tmp_path / "Set.valid.inter").unlink()
    tables = read_atomic(find_atomic(tmp_path, "Set"))
    assert _histories(tables) == [LONG[-5:], SHORT]
    assert tables.cut_users == 2
    assert ["of 1 users" in caplog.messages[0], "of 2 users" in caplog.messages[1]] == [True, True]


def test_training_lines_without_validation_lines_are_enough(tmp_path):
    _unisrec(tmp_path, [LONG, SHORT], limit=4)
    (tmp_path / "Set.valid.inter").unlink()
    tables = read_atomic(find_atomic(tmp_path, "Set"))
    assert _histories(tables) == [LONG, SHORT]
    assert tables.cut_users == 0


@pytest.mark.parametrize(
    ("split", "old", "new", "line", "user"),
    [
        ("valid", "1\t5 6 7\t8\n", "1\t5 6 7\t7\n", 3, "n1"),  # another target
        ("valid", "1\t5 6 7\t8\n", "1\t6 7\t8\n", 3, "n1"),  # not from the beginning
        ("valid", "0\t1 2 3 4\t4\n", "0\t1 2 3 3\t4\n", 2, "n0"),  # within the overlap
        ("train", "0\t0 1 2 3\t4\n", "", 2, "n0"),  # a target left out
        ("train", "1\t5 6\t7\n", "1\t5 6 7 8\t5\n", 9, "n1"),  # too long for its place
        ("train", "0\t0 1 2 3\t4\n", "0\t0 1 2 3\t4\n" * 9, 3, "n0"),  # too many
    ],
)
def test_an_earlier_line_that_contradicts_the_last_one_is_an_error(
    tmp_path, split, old, new, line, user
):
    _unisrec(tmp_path, [LONG, SHORT], limit=4)
    path = tmp_path / f"Set.{split}.inter"
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))
    message = (
        rf"{split}\.inter:{line}: the items of user '{user}' are not those .* remove .*{split}"
    )
    with pytest.raises(DataError, match=message):
        read_atomic(find_atomic(tmp_path, "Set"))


def test_an_earlier_line_of_a_user_without_a_last_one_is_an_error(tmp_path):
    _unisrec(tmp_path, [LONG, SHORT], limit=4)
    path = tmp_path / "Set.test.inter"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match=r"valid\.inter:3: the items of user 'n1' are not those"):
        read_atomic(find_atomic(tmp_path, "Set"))


REAL_DATA = os.environ.get("MMM4REC_REAL_DATA")


@pytest.mark.real
@pytest.mark.skipif(REAL_DATA is None, reason="MMM4REC_REAL_DATA names no folder")
def test_the_scientific_set_is_completed_by_training_lines_made_of_it(tmp_path):
    published = find_atomic(Path(REAL_DATA) / "scientific", "Scientific")
    tables = read_atomic(published)
    counts = len(tables.users), len(tables.items), tables.interactions.height
    assert counts == (8_442, 4_385, 59_384)
    assert tables.cut_users == 3  # the published 59,427 interactions have 43 more
    known = np.array(tables.items)
    codes = {name: number for number, name in enumerate(known)}
    by_user = tables.interactions.group_by("user", maintain_order=True).agg("asin")["asin"]
    longest = sorted(by_user.to_list(), key=len)[-40:]
    sequences = [[codes[name] % 9 for name in names] for names in longest]
    _unisrec(tmp_path, sequences, limit=20)
    assert _histories(read_atomic(find_atomic(tmp_path, "Set"))) == sequences
