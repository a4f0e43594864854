import pytest
import torch

from experiments.studies.shares import kept_shares
from mmm4rec.errors import DataError


def test_shares_counted_by_hand():
    whole = torch.tensor([1.0, 0.0, 0.5, 0.5])
    half, all_, none = kept_shares([whole / 2, whole, whole * 0], whole, seeds=3)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (all_.value, all_.low, all_.high) == pytest.approx((1, 1, 1))
    assert (none.value, none.low, none.high, none.seeds) == (0, 0, 0, 3)


def test_the_interval_is_that_of_a_ratio():
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(400, generator=generator, dtype=torch.float64)
    part = whole * (torch.rand(400, generator=generator) < 0.7)
    [found] = kept_shares([part], whole)
    # The delta method: the spread of the mean of (part - share * whole) / mean(whole).
    share = part.mean() / whole.mean()
    spread = (part - share * whole).std() / whole.mean() / 400**0.5
    assert found.value == pytest.approx(float(share))
    assert found.low == pytest.approx(float(share - 1.96 * spread), abs=0.01)
    assert found.high == pytest.approx(float(share + 1.96 * spread), abs=0.01)


def test_of_nothing_no_share_is_kept():
    with pytest.raises(DataError, match=r"is 0 for every user: .* Next: train longer"):
        kept_shares([torch.zeros(3)], torch.zeros(3))


def test_a_resample_without_anything_to_lose_is_left_out():
    whole = torch.tensor([1.0, *[0.0] * 9])
    [found] = kept_shares([whole / 4], whole)
    assert (found.low, found.high) == (0.25, 0.25)
