import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_model import PlainModel, einsum_ssd, segment_sums
from mmm4rec.batch import ItemCatalogue, ModalityFeatures, SequenceBatch
from mmm4rec.config import OFFICIAL, ModelConfig
from mmm4rec.loss import full_catalogue_loss
from mmm4rec.metrics import target_rank
from mmm4rec.model import MMM4Rec
from mmm4rec.official import to_official
from mmm4rec.ops.ssd import ssd

DAY = 86_400
NUM_ITEMS = 30
SIZES = {"d_model": 8, "d_feed_forward": 8, "head_dim": 4, "d_state": 4, "max_len": 6}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def build_models(**settings):
    """Return our model and the plain one, with equal random weights, in float64."""
    config = ModelConfig(**{**SIZES, "num_groups": 4, **OFFICIAL["model"], **settings})
    random = torch.Generator().manual_seed(0)
    present_I = torch.arange(NUM_ITEMS + 1) > 0
    features = {
        name: ModalityFeatures(
            torch.randn(NUM_ITEMS + 1, width, generator=random) * present_I[:, None], present_I
        )
        for name, width in (("text", 5), ("image", 3))
    }
    model = MMM4Rec(config, ItemCatalogue(features, "fingerprint"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=random)
    plain = PlainModel.like(model, config)
    return model.double().eval(), plain.double().eval(), config


def build_batch():
    random = torch.Generator().manual_seed(1)
    lengths_B = torch.tensor([1, 2, 3, 5, 6])
    mask_BL = torch.arange(6) < lengths_B[:, None]
    items_BL = torch.randint(1, NUM_ITEMS + 1, (5, 6), generator=random) * mask_BL
    stamps_BL = torch.randint(0, 90 * DAY, (5, 6), generator=random).cumsum(1) * mask_BL
    return SequenceBatch(items_BL, lengths_B, stamps_BL, torch.tensor([1, 5, 5, 9, 30]), lengths_B)


def run_both(model, plain):
    batch = build_batch()
    ours_BD = model(batch)
    return batch, ours_BD, plain(batch.items_BL, batch.timestamps_BL, batch.lengths_B)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_layers": 2, "num_groups": 1},
        {"use_item_bias": False, "use_time": False},
        {"per_position_time_gate": True, "use_feed_forward": False},
    ],
    ids=["paper", "two layers, one group", "no item bias, no time", "gate per position"],
)
def test_computes_what_our_model_computes(settings):
    model, plain, config = build_models(**settings)
    batch, ours_BD, plain_BD = run_both(model, plain)
    torch.testing.assert_close(plain_BD, ours_BD, **EXACT)
    scores_BI = model.score(ours_BD, model.item_matrix())
    torch.testing.assert_close(plain.scores(plain_BD), scores_BI, **EXACT)
    loss = full_catalogue_loss(scores_BI, batch.targets_B, padding_candidate=True)
    plain_loss = plain.loss(plain_BD, batch.targets_B)
    torch.testing.assert_close(plain_loss, loss, **EXACT)
    loss.backward()
    plain_loss.backward()
    ours = to_official({name: w.grad for name, w in model.named_parameters()}, config)
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(weight.grad, ours[name], **EXACT)
    rank = target_rank(scores_BI.detach(), batch.targets_B, padding_candidate=True)
    assert torch.equal(plain.ranks(plain_BD, batch.targets_B), rank.better_B)


def test_dropout_is_on_in_training():
    _, plain, _ = build_models()
    batch = build_batch()
    inputs = (batch.items_BL, batch.timestamps_BL, batch.lengths_B)
    plain.train()
    assert not torch.equal(plain(*inputs), plain(*inputs))


def test_segment_sums():
    sums = segment_sums(torch.tensor([[[1.0, 2.0, 3.0]]]))[0, 0].exp().log().tolist()
    assert sums[0] == [0, -torch.inf, -torch.inf]
    assert sums[1][:2] == pytest.approx([2, 0])
    assert sums[2] == pytest.approx([5, 3, 0])


def test_state_space_agrees_with_the_recurrence():
    random = torch.Generator().manual_seed(2)
    x, dt, B, C = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((2, 7, 4, 3), (2, 7, 4), (2, 7, 2, 5), (2, 7, 2, 5))
    )
    A, D = -torch.rand(4, generator=random).double(), torch.randn(4, generator=random).double()
    bias = torch.zeros(4, dtype=torch.float64)
    expected = ssd(x, dt, A, B, C, D, bias, skip="scaled_by_step", backend="recurrent")
    found = einsum_ssd(x, torch.nn.functional.softplus(dt), A, B, C, D)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_works_harder_than_our_model():
    """What it is there to show: it runs every position through every block."""
    model, plain, _ = build_models()
    counted = []
    for run in (
        lambda batch: model.score(model(batch), model.item_matrix()),
        lambda batch: plain.scores(plain(batch.items_BL, batch.timestamps_BL, batch.lengths_B)),
    ):
        with FlopCounterMode(display=False) as counter:
            run(build_batch())
        counted.append(counter.get_total_flops())
    assert counted[0] < counted[1]
