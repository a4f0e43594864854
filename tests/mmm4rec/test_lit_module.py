import pytest
import torch

from mmm4rec.lit_module import LitRecommender, MeanLoss
from mmm4rec.model import MMM4Rec


def test_the_mean_loss_weighs_batches_by_their_samples():
    mean = MeanLoss()
    for loss, samples in ((1.0, 3), (2.0, 1), (0.1, 4)):
        mean.update(torch.tensor(loss, dtype=torch.float64), samples)
    assert mean.compute().item() == pytest.approx((3 + 2 + 0.4) / 8, rel=1e-15)


def test_the_mean_loss_of_many_batches_is_not_rounded_to_single_precision():
    mean = MeanLoss()
    for _ in range(1000):
        mean.update(torch.tensor(0.1), 1024)
    assert mean.compute().item() == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)


@pytest.fixture
def build(tiny_config, tiny_catalogue):
    config = tiny_config()
    return lambda: LitRecommender(config, MMM4Rec(config.model, tiny_catalogue()))


def test_the_sums_of_an_epoch_under_way_survive_as_plain_numbers(build):
    lit, again, checkpoint = build(), build(), {}
    lit.train_loss.update(torch.tensor(0.7), 5)
    lit.on_save_checkpoint(checkpoint)
    total = torch.tensor(0.7).double().item() * 5
    assert checkpoint == {"train_loss": {"total": total, "samples": 5}}
    again.on_load_checkpoint(checkpoint)
    for module in (lit, again):
        module.train_loss.update(torch.tensor(0.3), 3)
    assert lit.train_loss.compute().equal(again.train_loss.compute())
    assert not any(name.startswith("train_loss") for name in lit.state_dict())


def test_an_epoch_forgets_the_loss_of_the_one_before(build):
    lit = build()
    lit.train_loss.update(torch.tensor(0.7), 5)
    lit.on_train_epoch_start()
    lit.train_loss.update(torch.tensor(0.25), 5)
    assert lit.train_loss.compute().item() == 0.25
