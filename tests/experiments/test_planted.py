import pytest
import torch

from experiments.planted import VALIDATION_USERS, WIDTH, PlantedData, draw_catalogue
from experiments.time_path import settings

CONFIG = settings({"data": {"batch_size": 32}}, "gap", 0)


@pytest.mark.parametrize("kind", ["gap", "marked"])
def test_an_epoch_has_the_batches_asked_for_and_nobody_is_validated_on_what_was_trained(kind):
    data = PlantedData(CONFIG, kind, "days", batches=7)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [32] * 7
    trained = {int(user) for batch in batches for user in batch.users_B}
    validated = torch.cat([batch.users_B for batch in data.val_dataloader()])
    assert len(validated) == VALIDATION_USERS
    assert trained.isdisjoint(validated.tolist())


def test_where_only_the_last_interaction_is_ruled_only_it_is_trained_on():
    data = PlantedData(CONFIG, "marked", "days", batches=7)
    ends_U = data.sequences.offsets_U[1:] - 1
    for batch in data.train_dataloader():
        assert torch.equal(batch.targets_B, data.sequences.items_N[ends_U[batch.users_B]])


def test_the_moment_of_recommending_is_that_of_the_target():
    config = settings({"data": {"batch_size": 32}}, "query", 0)
    data = PlantedData(config, "query", "days", batches=2)
    batch = next(iter(data.val_dataloader()))
    ends_B = data.sequences.offsets_U[batch.users_B + 1] - 1
    assert torch.equal(batch.query_time_B, data.sequences.timestamps_N[ends_B])


def test_items_of_a_cluster_lie_together_in_both_modalities():
    world = PlantedData(CONFIG, "gap", "days", batches=1).world
    catalogue = draw_catalogue(world, seed=0)
    clusters_I = torch.from_numpy(world.clusters_I)[1:]
    same_II = clusters_I[:, None] == clusters_I
    for features in catalogue.features.values():
        assert features.width == WIDTH
        assert not features.values_IF[0].any()
        distances_II = torch.cdist(features.values_IF[1:].float(), features.values_IF[1:].float())
        assert distances_II[same_II].max() < distances_II[~same_II].min()
