import pytest
import torch

from mmm4rec.ops import pieces
from mmm4rec.ops.pieces import in_pieces, piece_rows


def affine(x, scale, weight, offset):
    return (x * scale[:, None]).tanh() * weight + offset


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(0)
    shapes = [(7, 3), (7,), (3,), ()]
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (0, 2), (3,)])
def test_same_as_whole(monkeypatch, inputs, rows, wanted):
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", rows * 3)
    for index in wanted:
        inputs[index].requires_grad_()
    leaves = [inputs[index] for index in wanted]
    weight = torch.arange(21.0, dtype=torch.float64).view(7, 3)
    found, expected = in_pieces(affine, inputs[:2], inputs[2:]), affine(*inputs)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * weight).sum(), leaves)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_pieces_are_used(monkeypatch, inputs):
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", 6)
    seen = []

    def watched(*args):
        seen.append(len(args[0]))
        return affine(*args)

    in_pieces(watched, inputs[:2], inputs[2:])
    assert seen == [2, 2, 2, 1]


def test_whole_under_autocast(monkeypatch, inputs):
    """The backward pass would compute its pieces without autocast."""
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", 6)
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_pieces(lambda x, y: seen.append(len(x)) or x + y, inputs[:1], inputs[2:3])
    assert seen == [7]


def test_a_piece_is_one_row_at_least_and_all_rows_of_nothing():
    assert piece_rows(torch.zeros(3, pieces.CACHED_ELEMENTS + 1)) == 1
    assert piece_rows(torch.zeros(0, 4)) == 1
    assert in_pieces(torch.add, [torch.zeros(0, 4)], [torch.zeros(4)]).shape == (0, 4)
