"""Planted worlds of time as data that a run can train on."""

from __future__ import annotations

from typing import Any

import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import Config
from pipeline.datamodule import SequenceDataModule
from pipeline.sequences import BatchLoader, FlatSequences, training_targets
from pipeline.synthetic.temporal import Kind, TemporalWorld, Unit, draw_world

WIDTH = 16  # of the features
ITEM_NOISE = 0.1  # of a feature, against a spread of 1 between clusters
VALIDATION_USERS = 3_000
ASKED = ("marked", "rhythm")  # worlds whose rule speaks at a user's last interaction only


class PlantedData(SequenceDataModule):
    """A planted world, in memory: its last users are validated on, all others trained on."""

    def __init__(self, config: Config, kind: Kind, unit: Unit, *, batches: int) -> None:
        """Describe a world whose training targets fill at least `batches` batches.

        Args:
            config: of the run; its seed is the world's too.
            kind: see `draw_world`.
            unit: likewise.
            batches: of one epoch; further targets are left out.
        """
        self._described = {"kind": kind, "unit": unit, "batches": batches}
        super().__init__(
            config.data,
            [f"planted-{kind}-{unit}"],
            stage="pretrain",
            max_len=config.model.max_len,
            seed=config.trainer.seed,
        )
        samples = batches * config.data.batch_size
        per_user = 1 if kind in ASKED else 5
        users = VALIDATION_USERS + -(-samples // per_user)
        self.world = draw_world(kind, unit=unit, num_users=users, seed=self.seed)
        self._samples = samples

    def prepare_data(self) -> None:
        """Do nothing: the world is drawn."""

    def setup(self, stage: str | None = None) -> None:
        """Take the world's arrays."""
        if self._loaded is None:
            self._loaded = flat_sequences(self.world), draw_catalogue(self.world, self.seed)

    def lock(self) -> dict[str, Any]:
        """Return what identifies the world."""
        return {self.domains[0]: {**self._described, "seed": self.seed}}

    def train_dataloader(self) -> BatchLoader:
        """Shuffled training batches."""
        offsets_U = self.sequences.offsets_U[:-VALIDATION_USERS]
        if self._described["kind"] in ASKED:
            targets_at = offsets_U[1:] - 1
        else:
            targets_at = training_targets(offsets_U, torch.zeros(len(offsets_U) - 1).long())
        return self._loader(targets_at[: self._samples], self.config.batch_size, self.seed)

    def val_dataloader(self) -> BatchLoader:
        """The last interactions of the validation users."""
        return self._eval_loader(self.sequences.offsets_U[-VALIDATION_USERS:] - 1)

    def test_dataloader(self) -> BatchLoader:
        """The same: there is nothing else to choose by."""
        return self.val_dataloader()


def flat_sequences(world: TemporalWorld) -> FlatSequences:
    """Return the world's interactions as tensors."""
    return FlatSequences(
        torch.from_numpy(world.items_N),
        torch.from_numpy(world.seconds_N),
        torch.from_numpy(world.offsets_U),
    )


def draw_catalogue(world: TemporalWorld, seed: int) -> ItemCatalogue:
    """Return features of two modalities in which items of one cluster lie close together."""
    generator = torch.Generator().manual_seed(seed)
    clusters_I = torch.from_numpy(world.clusters_I)
    present_I = clusters_I >= 0
    features = {}
    for modality in ("text", "image"):
        centres = torch.randn(int(clusters_I.max()) + 1, WIDTH, generator=generator)
        noise_IF = ITEM_NOISE * torch.randn(len(clusters_I), WIDTH, generator=generator)
        values_IF = (centres[clusters_I.clamp(min=0)] + noise_IF) * present_I[:, None]
        features[modality] = ModalityFeatures(
            values_IF.half(), present_I, torch.zeros(WIDTH), "planted"
        )
    return ItemCatalogue(features, f"planted-{seed}")
