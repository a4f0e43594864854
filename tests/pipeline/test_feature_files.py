import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from mmm4rec.errors import DataError
from pipeline.feature_files import MAX_ENTRIES, MAX_ENTRY_BYTES, MAX_WIDTH, open_features

MATRIX = np.array([[1.5, -2.0], [0.25, 3.0], [0.0, 1e-3]], np.float32)


def _save(folder, value, **options):
    path = folder / "text_feat.pth"
    torch.save(value, path, **options)
    return path


def test_raw_floats_are_mapped_with_the_width_that_their_size_says(tmp_path):
    path = tmp_path / "Set.feat1CLS"
    MATRIX.tofile(path)
    rows = open_features(path, 3)
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows, MATRIX)
    assert open_features(path, 2).shape == (2, 3)


@pytest.mark.parametrize(
    ("size", "num_items"), [(25, 3), (24, 4), (0, 3), (24, 0), (4 * (MAX_WIDTH + 1), 1)]
)
def test_raw_floats_of_another_size_are_refused_with_both_sizes(tmp_path, size, num_items):
    path = tmp_path / "Set.feat3CLS"
    path.write_bytes(bytes(size))
    message = f"feat3CLS: {size} bytes are not {num_items} items x width x 4 bytes with a width in"
    with pytest.raises(DataError, match=message):
        open_features(path, num_items)


@pytest.mark.parametrize("name", ["Set.feat1CLS", "text_feat.pth"])
def test_a_file_that_is_not_there_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=f"cannot read .*{name}: No such file"):
        open_features(tmp_path / name, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_is_read_alone_or_as_the_only_one_of_a_dict(tmp_path, dtype):
    tensor = torch.from_numpy(MATRIX).to(dtype)
    for value in (tensor, {"features": tensor, "model": "x"}, torch.nn.Parameter(tensor)):
        rows = open_features(_save(tmp_path, value), 3)
        assert rows.dtype == dtype
        assert not rows.requires_grad
        assert torch.equal(rows, tensor)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(2, 4), r"found shape \(2, 4\) of torch.float32, expected \(3, width\) floats"),
        (torch.zeros(3), r"found shape \(3,\) of torch.float32"),
        (torch.zeros(3, 2, 1), r"found shape \(3, 2, 1\)"),
        (torch.zeros(3, 0), r"found shape \(3, 0\)"),
        (torch.zeros(3, 2, dtype=torch.int64), r"found shape \(3, 2\) of torch.int64"),
        (torch.zeros(3, 2, dtype=torch.complex64), r"found shape \(3, 2\) of torch.complex64"),
        (torch.zeros(3, 2).to_sparse(), r"found shape \(3, 2\) of torch.float32"),
        (torch.zeros(3, 2, device="meta"), r"found shape \(3, 2\) of torch.float32"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, "object of type dict with 2 tensors"),
        ([torch.zeros(3, 2)], "an object of type list with 0 tensors"),
        ({"a": 1}, "an object of type dict with 0 tensors"),
        ("text", "an object of type str with 0 tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_anything_but_one_matrix_of_floats_is_refused(tmp_path, value, found):
    with pytest.raises(DataError, match=f"text_feat.pth: .*{found}"):
        open_features(_save(tmp_path, value), 3)


class _Writes:
    """Would write a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    target = tmp_path / "pwned"
    attack = _save(tmp_path, {"features": torch.zeros(3, 2), "more": _Writes(target)})
    with pytest.raises(
        DataError, match=r"found posix\.mkdir, an object whose loading can run code"
    ):
        open_features(attack, 3)
    attack.write_bytes(pickle.dumps(_Writes(target)))
    with pytest.raises(DataError, match=r"not a zip archive, as torch\.save writes them since"):
        open_features(attack, 3)
    assert not target.exists()
    torch.load(_save(tmp_path, _Writes(target)), weights_only=False)  # the attack is a real one
    assert target.exists()


def test_an_old_file_of_pytorch_is_refused(tmp_path):
    path = _save(tmp_path, torch.zeros(3, 2), _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"not a zip archive.*torch.save\(tensor, 'text_feat.pth'"):
        open_features(path, 3)


def test_an_archive_larger_than_one_tensor_can_be_is_refused_unread(tmp_path):
    path = tmp_path / "text_feat.pth"
    limit = 8 * MAX_WIDTH + MAX_ENTRIES * MAX_ENTRY_BYTES
    with path.open("wb") as file:
        file.truncate(limit + 1)
    with pytest.raises(DataError, match=f"{limit + 1} bytes, expected at most {limit} for 1 items"):
        open_features(path, 1)


@pytest.mark.parametrize(
    ("entries", "compression", "found"),
    [
        (
            {"x/data.pkl": MAX_ENTRY_BYTES + 1},
            zipfile.ZIP_STORED,
            "entry 'x/data.pkl' is compressed or larger",
        ),
        ({"x/data/0": 100}, zipfile.ZIP_DEFLATED, "entry 'x/data/0' is compressed or larger"),
        ({f"x/data/{n}": 1 for n in range(99)}, zipfile.ZIP_STORED, r"99 entries \(at most 64\)"),
    ],
)
def test_an_archive_of_something_else_is_refused_unread(tmp_path, entries, compression, found):
    path = tmp_path / "image_feat.pth"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, size in entries.items():
            archive.writestr(name, bytes(size))
    with pytest.raises(DataError, match=rf"found an archive .*{found}"):
        open_features(path, 3)


def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path):
    tensor = torch.zeros(2, 2)
    whole = _save(tmp_path, tensor).read_bytes()
    claims = whole.replace(b"K\x02K\x02\x86", b"K\x63K\x02\x86", 1)
    assert claims != whole
    path = tmp_path / "claims.pth"
    path.write_bytes(claims)
    with pytest.raises(
        DataError, match=r"claims\.pth: expected one tensor of floats, found a dama"
    ):
        open_features(path, 99)


def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path):
    whole = _save(tmp_path, torch.from_numpy(MATRIX)).read_bytes()
    generator = random.Random(5)
    path = tmp_path / "damaged.pth"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            rows = open_features(path, 3)
        except DataError:
            refused += 1
        else:
            assert (rows.ndim, len(rows)) == (2, 3)
    assert 200 < refused < 400
