from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mmm4rec.baselines.content import ContentNeighbour
from mmm4rec.errors import DataError
from mmm4rec.runner import evaluate


def test_scores_are_the_mean_cosine_with_the_last_item(tiny_catalogue, batch):
    catalogue = tiny_catalogue()
    model = ContentNeighbour(catalogue)
    scores_BI = model.score(model(batch), model.item_matrix())
    text, image = (features.values_IF.float() for features in catalogue.features.values())
    for row, length in enumerate(batch.lengths_B.tolist()):
        last = int(batch.items_BL[row, length - 1])
        expected_I = sum(F.cosine_similarity(x[last][None], x) for x in (text, image)) / 2
        assert_close(scores_BI[row], expected_I, rtol=0, atol=1e-6)
    ids_N = torch.tensor([3, 7])
    assert model.encode_items(ids_N).equal(model.item_matrix()[ids_N])


def test_a_modality_that_no_item_has_does_not_count(tiny_catalogue, batch):
    catalogue = tiny_catalogue()
    nothing = replace(
        catalogue.features["image"], values_IF=torch.zeros(31, 0), present_I=torch.zeros(31).bool()
    )
    text = catalogue.features["text"]
    model = ContentNeighbour(replace(catalogue, features={"text": text, "image": nothing}))
    last_B = batch.items_BL[torch.arange(7), batch.lengths_B - 1]
    scores_BI = model.score(model(batch), model.item_matrix())
    own_B = scores_BI[torch.arange(7), last_B]
    assert_close(own_B, torch.ones(7))
    bare = replace(catalogue, features={"text": nothing, "image": nothing})
    with pytest.raises(DataError, match="no item has text or image features"):
        ContentNeighbour(bare)


def test_it_is_ranked_through_the_same_path(tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    data = tiny_data(config)
    # Items on an arc: the fewer steps apart, the more alike.
    angle_I = torch.arange(31) * torch.pi / 31
    values_IF = torch.stack([angle_I.cos(), angle_I.sin()], 1)
    sequences, catalogue = data._loaded
    features = replace(catalogue.features["text"], values_IF=values_IF)
    data._loaded = (sequences, replace(catalogue, features={"text": features}))
    run = evaluate(config, ContentNeighbour(data.catalogue), data, tmp_path / "c", described={})
    target_U, last_U = (sequences.items_N[sequences.offsets_U[1:] - back] for back in (1, 2))
    distance_UI = (torch.arange(1, 31) - last_U[:, None]).abs()
    better_U = (distance_UI < (target_U - last_U).abs()[:, None]).sum(1)
    ranked = pq.read_table(run.folder / "ranks.parquet")["better"].to_pylist()
    # Rounding may part two items that are equally far.
    assert all(b <= found <= b + 1 for found, b in zip(ranked, better_U.tolist(), strict=True))
