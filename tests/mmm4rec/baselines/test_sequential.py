from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mmm4rec.errors import DataError
from mmm4rec.loss import catalogue_loss
from mmm4rec.model import weight_decay_parameters

TWO_LAYERS = "model.num_layers=2"


@pytest.fixture
def model(name, build):
    return build(name, TWO_LAYERS)


def test_what_stands_behind_the_last_item_changes_nothing(model, batch):
    padding_BL = batch.items_BL == 0
    later = replace(
        batch,
        items_BL=batch.items_BL + 7 * padding_BL,
        timestamps_BL=batch.timestamps_BL + 1_500_000_000 * padding_BL,
    )
    assert not later.items_BL.equal(batch.items_BL)
    assert_close(model(later), model(batch), rtol=0, atol=1e-12)


def test_a_user_does_not_know_the_future_of_his_history(model, batch):
    # The first three items of a longer history are read as if there was nothing more.
    whole = batch.take(batch.lengths_B > 3)
    cut = replace(whole, lengths_B=torch.full_like(whole.lengths_B, 3))
    short = replace(cut, items_BL=cut.items_BL[:, :3], timestamps_BL=cut.timestamps_BL[:, :3])
    assert_close(model(cut), model(short), rtol=0, atol=1e-12)
    assert (model(cut) - model(whole)).abs().max() > 1e-3


def test_how_far_a_batch_is_padded_changes_nothing(name, build, batch):
    model = build(name, TWO_LAYERS, "model.max_len=9")
    wide = replace(
        batch,
        items_BL=torch.nn.functional.pad(batch.items_BL, (0, 3)),
        timestamps_BL=torch.nn.functional.pad(batch.timestamps_BL, (0, 3)),
    )
    assert_close(model(wide), model(batch), rtol=0, atol=1e-12)


def test_a_user_s_vector_does_not_depend_on_the_others(model, batch, monkeypatch):
    together = model(batch)
    order_B = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert_close(model(batch.take(order_B)), together[order_B], rtol=0, atol=1e-12)
    monkeypatch.setattr("mmm4rec.model.ROWS_AT_ONCE", 2)
    assert_close(model(batch), together, rtol=0, atol=1e-12)


def test_every_item_of_a_history_counts(model, batch):
    before = model(batch)
    for position in range(6):
        items_BL = batch.items_BL.clone()
        items_BL[:, position] = items_BL[:, position] % 30 + 1
        moved_B = (model(replace(batch, items_BL=items_BL)) - before).abs().amax(1) > 1e-9
        assert moved_B.tolist() == (batch.lengths_B > position).tolist()


def test_the_gradient_reaches_every_parameter(name, build, batch, tiny_catalogue):
    catalogue = tiny_catalogue()
    catalogue.features["text"].present_I[::5] = False
    model = build(name, TWO_LAYERS, catalogue=catalogue).train()
    catalogue_loss(model(batch), model.item_matrix(), batch.targets_B).backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.any(), part


def test_a_score_is_the_product_with_the_item_s_vector(model, batch):
    user_BD, items_ID = model(batch), model.item_matrix()
    assert items_ID.shape == (31, 16)
    ids_N = torch.tensor([4, 4, 9])
    assert_close(model.encode_items(ids_N), items_ID[ids_N])
    scores_BI = model.score(user_BD, items_ID)
    assert_close(scores_BI, torch.einsum("bd,id->bi", user_BD, items_ID))


def test_narrow_types_score_in_float32(name, build, batch):
    model = build(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        narrow_BI = model.score(model(batch), model.item_matrix())
    assert narrow_BI.dtype == torch.float32
    wide_BI = model.score(model(batch), model.item_matrix())
    assert_close(narrow_BI, wide_BI, rtol=0, atol=0.05 * wide_BI.abs().max().item())


def test_longer_histories_than_the_model_reads_are_an_error(model, batch):
    items_BL = torch.nn.functional.pad(batch.items_BL, (0, 1))
    with pytest.raises(DataError, match=r"sequences of 7 items, .* at most 6 .*max_len=7"):
        model(replace(batch, items_BL=items_BL))


def test_weight_decay_takes_matrices_and_tables_only(model):
    names = {name for name, _ in model.named_parameters()}
    decayed = weight_decay_parameters(model)
    assert decayed <= names
    spared = ("norm", "bias", "conv", "A_log", ".D", "dt_bias", "sqrt_beta", "missing")
    time_path = ("time_encoder", "time_scale", "time_gate")
    assert names - decayed == {n for n in names if any(part in n for part in (*spared, *time_path))}
    assert "item_encoder.item_table.weight" in decayed
