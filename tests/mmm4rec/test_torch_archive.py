import os
import pickle
import zipfile

import pytest
import torch

from mmm4rec.torch_archive import ArchiveError, load_archive

LIMITS = {"max_entries": 20, "max_entry_bytes": 10_000}


def saved(folder, value, **options):
    torch.save(value, folder / "x.ckpt", **options)
    return folder / "x.ckpt"


class Makes:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_tensors_and_plain_data(tmp_path):
    value = {"a": torch.arange(3), "b": [1, 2.5, "x", None], "c": {"d": torch.zeros(2, 2)}}
    read = load_archive(saved(tmp_path, value), **LIMITS)
    assert read["b"] == value["b"]
    assert torch.equal(read["a"], value["a"])
    assert torch.equal(read["c"]["d"], value["c"]["d"])


def test_code_is_named_and_not_run(tmp_path):
    target = tmp_path / "made"
    attack = saved(tmp_path, {"model": {"w": torch.zeros(1)}, "more": Makes(target)})
    with pytest.raises(ArchiveError, match=r"posix\.mkdir, an object whose loading can"):
        load_archive(attack, **LIMITS)
    assert not target.exists()
    torch.load(attack, weights_only=False)  # the attack is a real one
    assert target.exists()


@pytest.mark.parametrize("content", ["pickle", "old", "text", "nothing"])
def test_what_is_no_archive(tmp_path, content):
    path, target = tmp_path / "x.ckpt", tmp_path / "made"
    if content == "old":
        saved(tmp_path, {"w": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    else:
        bytes_of = {"pickle": pickle.dumps(Makes(target)), "text": b"<html>", "nothing": b""}
        path.write_bytes(bytes_of[content])
    with pytest.raises(ArchiveError, match=r"not a zip archive, as torch\.save writes them"):
        load_archive(path, **LIMITS)
    assert not target.exists()


@pytest.mark.parametrize(
    ("entries", "compression", "found"),
    [
        ({"x/data.pkl": 10_001}, zipfile.ZIP_STORED, r"'x/data\.pkl' is .* larger than 10000"),
        ({"x/data/0": 100}, zipfile.ZIP_DEFLATED, "'x/data/0' is compressed or"),
        ({f"x/data/{n}": 1 for n in range(21)}, zipfile.ZIP_STORED, r"21 entries \(at most 20\)"),
        ({"x/data.pkl": 5}, zipfile.ZIP_STORED, "a damaged archive"),
        ({"y": 5}, zipfile.ZIP_STORED, "a damaged archive"),
    ],
)
def test_an_archive_of_something_else(tmp_path, entries, compression, found):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, size in entries.items():
            archive.writestr(name, bytes(size))
    with pytest.raises(ArchiveError, match=found):
        load_archive(path, **LIMITS)


def test_entries_that_overlap(tmp_path):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(1000))
        # The same bytes under a second name, as only a forger writes it.
        archive.filelist.append(archive.getinfo("x/data/0"))
        archive.filelist.append(archive.getinfo("x/data/0"))
    with pytest.raises(ArchiveError, match="whose entries overlap"):
        load_archive(path, **LIMITS)


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.9, 0.99])
def test_half_a_file(tmp_path, at):
    path = saved(tmp_path, {"w": torch.zeros(500)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * at)])
    with pytest.raises(ArchiveError, match=r"not a zip archive|a damaged archive"):
        load_archive(path, **LIMITS)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ArchiveError, match="No such file"):
        load_archive(tmp_path / "x", **LIMITS)
    with pytest.raises(ArchiveError, match="not a zip archive"):
        load_archive(tmp_path, **LIMITS)


def test_a_tensor_that_claims_more_than_its_storage(tmp_path):
    whole = saved(tmp_path, {"w": torch.zeros(2, 2)}).read_bytes()
    shape = b"K\x02K\x02\x86"  # 2, 2, a pair: first the shape, then the strides
    assert whole.count(shape[:4]) >= 1
    (tmp_path / "x.ckpt").write_bytes(whole.replace(shape, b"K\xffK\xff\x86"))
    with pytest.raises(ArchiveError, match="a damaged archive"):
        load_archive(tmp_path / "x.ckpt", **LIMITS)
