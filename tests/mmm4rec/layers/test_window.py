import pytest
import torch

from mmm4rec.layers.window import last_window

LAST_B = torch.tensor([0, 2, 6])


@pytest.mark.parametrize("width", [1, 3, 7, 9])
def test_takes_the_positions_up_to_the_last(width):
    x_MBLD = torch.randn(2, 3, 7, 4)
    window = last_window(LAST_B, width, length=7)
    taken = window.take(x_MBLD)
    assert taken.shape == (2, 3, min(width, 7), 4)
    for row, last in enumerate(LAST_B.tolist()):
        real = min(width, last + 1)
        assert torch.equal(taken[:, row, -real:], x_MBLD[:, row, last + 1 - real : last + 1])
        assert window.real_BW[row].tolist() == [False] * (min(width, 7) - real) + [True] * real
        # The stand-ins are no positions of the window, so that nothing is written twice.
        assert len(set(window.at_BW[row].tolist())) == min(width, 7)


def test_narrow():
    window = last_window(LAST_B, 4, length=7).narrow(1)
    assert window.at_BW.squeeze(1).tolist() == LAST_B.tolist()
    assert window.real_BW.all()


def test_gradient_goes_where_the_value_came_from():
    x_BLD = torch.randn(3, 7, 2, requires_grad=True)
    window = last_window(LAST_B, 2, length=7)
    (window.take(x_BLD) * window.real_BW[..., None]).sum().backward()
    expected = torch.zeros(3, 7)
    for row, last in enumerate(LAST_B.tolist()):
        expected[row, max(0, last - 1) : last + 1] = 1
    assert torch.equal(x_BLD.grad, expected[..., None].expand(-1, -1, 2))
