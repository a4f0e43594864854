import pytest
import torch
from torch.nn import functional as F

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import ModelConfig
from mmm4rec.errors import ConfigError
from mmm4rec.layers.item_encoder import ItemEncoder

SIZES = {"d_model": 8, "head_dim": 4, "num_groups": 2}
PRESENT = torch.tensor([False, True, False, True, True])


def features(present=PRESENT, width=3, blank=None, dtype=torch.float32):
    torch.manual_seed(len(present) + width)
    values = torch.randn(len(present), width) * present[:, None]
    return ModalityFeatures(values.to(dtype), present, blank)


def encoder(policy="learned", use_item_bias=True, **modalities):
    torch.manual_seed(0)
    config = ModelConfig(**SIZES, missing_modality=policy, use_item_bias=use_item_bias)
    module = ItemEncoder(config, ItemCatalogue(modalities or {"text": features()}, "x"))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.eval()


def adapted(module, raw, name="text"):
    adapter = module.modalities[name].adapter
    return raw @ adapter.weight.T + adapter.bias


def test_learned_vector_replaces_the_adapter_before_the_bias():
    module, given = encoder(), features()
    out = module.encode("text", None)
    bias = module.item_bias["text"]
    torch.testing.assert_close(out[3], adapted(module, given.values_IF[3]) + bias[3])
    torch.testing.assert_close(out[2], module.modalities["text"].missing + bias[2])


def test_zero_goes_through_the_adapter():
    module = encoder("zero")
    out = module.encode("text", None)
    torch.testing.assert_close(
        out[2], module.modalities["text"].adapter.bias + module.item_bias["text"][2]
    )


def test_white_is_the_blank_feature_through_the_adapter():
    blank = torch.tensor([1.0, 2.0, 3.0])
    module = encoder("white", use_item_bias=False, text=features(blank=blank))
    out = module.encode("text", None)
    torch.testing.assert_close(out[2], adapted(module, blank))
    # The padding item is not a blank picture: its raw feature is 0.
    torch.testing.assert_close(out[0], module.modalities["text"].adapter.bias)


def test_white_without_a_blank():
    with pytest.raises(ConfigError, match=r"white, but 1 of 4 items have no text .*Next: --set"):
        encoder("white")


def test_white_needs_no_blank_where_nothing_is_missing():
    present = torch.tensor([False, True, True])
    module = encoder("white", text=features(present))
    assert module.encode("text", None).shape == (3, 8)


@pytest.mark.parametrize("policy", ["learned", "zero", "white"])
def test_modality_that_no_item_has(policy):
    module = encoder(policy, image=features(torch.zeros(5, dtype=torch.bool), width=0))
    assert module.modalities["image"].adapter is None
    out = module.encode("image", torch.tensor([1, 4]))
    bias = module.item_bias["image"]
    torch.testing.assert_close(out, module.modalities["image"].missing + bias[[1, 4]])


@pytest.mark.parametrize("name", ["a.b", "keys", "2d", ""])
def test_name_that_cannot_be_a_part(name):
    with pytest.raises(ConfigError, match=r"cannot name a part of the model.*Next: rename"):
        encoder(**{name: features()})


def test_candidates_are_unit_vectors_over_the_temperature():
    module = encoder(text=features(), image=features(width=2))
    expected = sum(F.normalize(module.encode(name, None), dim=-1) for name in ("text", "image"))
    torch.testing.assert_close(module.candidates(None), expected / 0.8)
    ids = torch.tensor([4, 1, 4])
    torch.testing.assert_close(module.candidates(ids), module.candidates(None)[ids])


def test_sequence_side_has_the_layer_norm():
    module = encoder(text=features(), image=features(width=2))
    items = torch.tensor([[3, 3, 0], [1, 2, 4]])
    for stream, name in zip(module(items), ("text", "image"), strict=True):
        norm = module.norms[name]
        expected = F.layer_norm(module.encode(name, None)[items], (8,), norm.weight, norm.bias)
        torch.testing.assert_close(stream, expected)


def test_dropout_differs_between_positions_of_one_item():
    module = encoder().train()
    (stream,) = module(torch.tensor([[3, 3]]))
    assert not torch.equal(stream[0, 0], stream[0, 1])


def test_half_precision_features_and_state():
    """Features are cast where they are gathered, and no checkpoint holds them."""
    module = encoder(text=features(dtype=torch.float16))
    assert module.encode("text", None).dtype == torch.float32
    assert module.modalities["text"].values_IF.dtype == torch.float16
    assert not any("values" in key or "present" in key for key in module.state_dict())


def test_item_bias_starts_at_zero_and_missing_does_not():
    module = ItemEncoder(ModelConfig(**SIZES), ItemCatalogue({"text": features()}, "x"))
    assert module.item_bias["text"].shape == (5, 8)
    assert not module.item_bias["text"].any()
    assert module.modalities["text"].missing.all()


def test_the_same_without_gradients_piece_by_piece(monkeypatch):
    module = encoder(text=features(), image=features(width=2))
    whole = module.candidates(None)
    some = module.candidates(torch.tensor([4, 0, 4]))
    monkeypatch.setattr("mmm4rec.layers.item_encoder.ROWS_AT_ONCE", 2)
    with torch.no_grad():
        torch.testing.assert_close(module.candidates(None), whole)
        torch.testing.assert_close(module.candidates(torch.tensor([4, 0, 4])), some)
        assert module.candidates(torch.tensor([], dtype=torch.int64)).shape == (0, 8)
