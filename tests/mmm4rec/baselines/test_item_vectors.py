from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mmm4rec.baselines.item_vectors import ItemVectors
from mmm4rec.errors import ConfigError


@pytest.fixture
def vectors(tiny_config, tiny_catalogue):
    """The vectors of a tiny catalogue in float64, none at its start."""

    def build(inputs, *overrides, catalogue=None):
        torch.manual_seed(0)
        config = tiny_config(f"model.item_inputs={inputs}", *overrides)
        built = ItemVectors(config.model, catalogue or tiny_catalogue()).double()
        for parameter in built.parameters():
            parameter.data.normal_()
        return built

    return build


def _adapted_by_hand(built, catalogue, item):
    parts = []
    for name, features in catalogue.features.items():
        encoder = built.modalities[name]
        if features.present_I[item]:
            weight, bias = encoder.adapter.weight, encoder.adapter.bias
            parts.append(weight @ features.values_IF[item].double() + bias)
        else:
            parts.append(encoder.missing)
    return sum(parts) / len(parts)


def test_ids_are_rows_of_a_table(vectors):
    built = vectors("ids")
    assert [name for name, _ in built.named_parameters()] == ["item_table.weight"]
    assert built.encode(torch.tensor([3, 3, 0])).equal(built.item_table.weight[[3, 3, 0]])
    assert built.encode(None).equal(built.item_table.weight)


def test_features_are_the_mean_of_the_adapted_modalities(vectors, tiny_catalogue):
    built, catalogue = vectors("features"), tiny_catalogue()
    assert built.item_table is None
    assert not catalogue.features["image"].present_I[8]
    for item in (1, 8, 30):
        expected = _adapted_by_hand(built, catalogue, item)
        assert_close(built.encode(torch.tensor([item]))[0], expected)


def test_both_are_their_sum(vectors, tiny_catalogue):
    built, catalogue = vectors("both"), tiny_catalogue()
    expected = torch.stack([_adapted_by_hand(built, catalogue, item) for item in range(31)])
    assert_close(built.encode(None), expected + built.item_table.weight)


def test_a_history_has_the_vectors_of_its_items(vectors):
    built = vectors("both")
    items_BL = torch.tensor([[5, 2, 5], [9, 0, 0]])
    assert_close(built(items_BL), built.encode(None)[items_BL])


def test_without_any_feature_there_must_be_ids(vectors, tiny_catalogue):
    catalogue = tiny_catalogue()
    bare = {
        name: replace(features, values_IF=torch.zeros(31, 0), present_I=torch.zeros(31).bool())
        for name, features in catalogue.features.items()
    }
    catalogue = replace(catalogue, features=bare)
    with pytest.raises(ConfigError, match=r"no item has text or image features .*item_inputs=ids"):
        vectors("features", catalogue=catalogue)
    assert vectors("ids", catalogue=catalogue).encode(None).shape == (31, 16)


def test_a_missing_modality_follows_the_policy(vectors, tiny_catalogue):
    built = vectors("features", "model.missing_modality=zero")
    text, image = built.modalities["text"], built.modalities["image"]
    features = tiny_catalogue().features["text"].values_IF[8].double()
    expected = (text.adapter.weight @ features + text.adapter.bias + image.adapter.bias) / 2
    assert_close(built.encode(torch.tensor([8]))[0], expected)
