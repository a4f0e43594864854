import os

import pytest

from mmm4rec.errors import DataError
from pipeline import lockfile
from pipeline.lockfile import LOCK, check_unchanged, lock_file, read_lock, write_entry

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, B.1


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(b"abc")
    write_entry(path, lock_file(path, "http://shop/file.csv", path))
    return path


def test_an_entry_says_what_the_file_is(target):
    (entry,) = read_lock(target.parent).values()
    assert (entry.url, entry.bytes, entry.sha256) == ("http://shop/file.csv", 3, ABC)
    assert entry.modified_ns == target.stat().st_mtime_ns


def test_entries_are_sorted_and_an_earlier_one_is_replaced(target):
    other = target.with_name("a.csv")
    write_entry(other, lock_file(other, "http://shop/a", target))
    write_entry(target, lock_file(target, "http://shop/new", target))
    entries = read_lock(target.parent)
    assert [(name, e.url) for name, e in entries.items()] == [
        ("a.csv", "http://shop/a"),
        ("file.csv", "http://shop/new"),
    ]


def test_a_file_that_looks_untouched_is_not_read(target, monkeypatch):
    monkeypatch.setattr(lockfile, "sha256_file", None)
    check_unchanged(target, read_lock(target.parent)["file.csv"])


def test_a_copy_with_another_time_is_read_and_accepted(target):
    os.utime(target, ns=(1, 1))
    check_unchanged(target, read_lock(target.parent)["file.csv"])


def test_a_changed_file_is_refused_with_both_hashes(target):
    target.write_bytes(b"abd")
    os.utime(target, ns=(1, 1))
    message = rf"has 3 bytes and sha256 a52d.*says 3 bytes and {ABC}\. Next: delete .*file.csv"
    with pytest.raises(DataError, match=message):
        check_unchanged(target, read_lock(target.parent)["file.csv"])


def test_a_folder_without_a_lock_has_no_entries(tmp_path):
    assert read_lock(tmp_path) == {}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": {"url": "x"}}', '{"a": 1}', "\ufffe"])
def test_a_damaged_lock_is_refused(tmp_path, damage):
    (tmp_path / LOCK).write_text(damage, encoding="utf-16" if damage == "\ufffe" else "utf-8")
    with pytest.raises(DataError, match=r"lock.json cannot be read as a lock.*Next: delete it"):
        read_lock(tmp_path)
