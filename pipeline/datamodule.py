"""Prepared domains to batches for training and evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import Config, DataConfig
from mmm4rec.errors import DataError
from pipeline.domains import name_domain
from pipeline.prepared import PreparedDomain, load_domain
from pipeline.schema import MANIFEST, prepared_dir, read_manifest, sha256_file
from pipeline.sequences import BatchLoader, FlatSequences, held_out_targets, training_targets
from pipeline.withheld import choose_cold, drop_items, hide_modalities

Stage = Literal["pretrain", "finetune"]


class SequenceDataModule(LightningDataModule):
    """Batches of one or several prepared domains, joined in memory.

    `finetune`: the last item of every user is the test target, the last but one the validation
    target (leave-one-out, as in the paper). `pretrain`: a seeded share of the users lose their
    last item to validation, everything else is trained on.
    """

    def __init__(
        self, config: DataConfig, domains: list[str], *, stage: Stage, max_len: int, seed: int
    ) -> None:
        """Describe the data; nothing is read before `prepare_data` or `setup`.

        Args:
            config: where and how.
            domains: short or full names of prepared domains, at least one, none twice.
            stage: how to split.
            max_len: most recent items kept, L.
            seed: of the shuffling and of the validation users of `pretrain`.

        Raises:
            ConfigError: a name cannot be that of a folder.
            DataError: there is no domain, or one is there twice.
        """
        super().__init__()
        names = [name_domain(domain).name for domain in domains]
        if not names or len(set(names)) != len(names):
            raise DataError(f"give each domain once, at least one: found {domains}")
        self.config = config
        self.domains = names
        self.stage: Stage = stage
        self.max_len = max_len
        self.seed = seed
        self._loaded: tuple[FlatSequences, ItemCatalogue] | None = None

    @classmethod
    def from_config(cls, config: Config, domains: list[str], stage: Stage) -> SequenceDataModule:
        """Describe the data of a run by its whole configuration."""
        return cls(
            config.data,
            domains,
            stage=stage,
            max_len=config.model.max_len,
            seed=config.trainer.seed,
        )

    def prepare_data(self) -> None:
        """Check that every domain is there.

        Raises:
            DataError: one is not; the message names the command that makes it.
        """
        for domain in self.domains:
            read_manifest(prepared_dir(self.config.data_dir, domain))

    def setup(self, stage: str | None = None) -> None:
        """Load the domains once.

        Raises:
            DataError: a domain is not there, or the domains' features do not go together.
        """
        if self._loaded is None:
            config = self.config
            parts = [
                self._withhold(
                    load_domain(config.data_dir, domain, config.modalities, config.encoders)
                )
                for domain in self.domains
            ]
            self._loaded = join_domains(parts)

    def _withhold(self, part: PreparedDomain) -> PreparedDomain:
        sequences, catalogue = part.sequences, hide_modalities(part.catalogue, self.config)
        if self.config.cold_share:
            cold_I = choose_cold(catalogue, self.config)
            sequences = drop_items(sequences, cold_I, keep_last=self.stage == "finetune")
        return replace(part, sequences=sequences, catalogue=catalogue)

    @property
    def sequences(self) -> FlatSequences:
        """All interactions, joined."""
        self.setup()
        assert self._loaded is not None
        return self._loaded[0]

    @property
    def catalogue(self) -> ItemCatalogue:
        """All items, joined."""
        self.setup()
        assert self._loaded is not None
        return self._loaded[1]

    def lock(self) -> dict[str, Any]:
        """Return what identifies the data: per domain the manifest's hash and final counts."""
        locked = {}
        for domain in self.domains:
            folder = prepared_dir(self.config.data_dir, domain)
            counts = read_manifest(folder).counts[-1].model_dump(exclude={"step"})
            locked[domain] = {"manifest_sha256": sha256_file(folder / MANIFEST), **counts}
        return locked

    def train_dataloader(self) -> BatchLoader:
        """Shuffled training batches."""
        held_out_U = torch.full((self.sequences.num_users,), 2)
        if self.stage == "pretrain":
            held_out_U = self._validation_users().long()
        targets_at = training_targets(self.sequences.offsets_U, held_out_U)
        if len(targets_at) == 0:
            raise DataError(
                f"{', '.join(self.domains)}: no training sample; users need at least "
                f"{4 if self.stage == 'finetune' else 2} interactions"
            )
        return self._loader(targets_at, self.config.batch_size, self.seed)

    def val_dataloader(self) -> BatchLoader:
        """Every validation user once, in order."""
        offsets_U = self.sequences.offsets_U
        if self.stage == "finetune":
            return self._eval_loader(held_out_targets(offsets_U, 2))
        ends_U = offsets_U[1:] - 1
        return self._eval_loader(ends_U[self._validation_users()])

    def test_dataloader(self) -> BatchLoader:
        """Every user once, in order, the last interaction as target."""
        return self._eval_loader(held_out_targets(self.sequences.offsets_U, 1))

    def train_items(self) -> torch.Tensor:
        """Return the items of all interactions that are not held out, for counting."""
        assert self.stage == "finetune"
        offsets_U = self.sequences.offsets_U
        kept_N = torch.ones(len(self.sequences.items_N), dtype=torch.bool)
        for back in (1, 2):
            kept_N[held_out_targets(offsets_U, back)] = False
        return self.sequences.items_N[kept_N]

    def _validation_users(self) -> torch.Tensor:
        eligible_U = self.sequences.offsets_U.diff() >= 2
        generator = torch.Generator().manual_seed(self.seed)
        share_U = torch.rand(self.sequences.num_users, generator=generator)
        chosen_U = eligible_U & (share_U < self.config.validation_share)
        if not chosen_U.any() and eligible_U.any():
            chosen_U[eligible_U.nonzero()[0]] = True
        return chosen_U

    def _eval_loader(self, targets_at: torch.Tensor) -> BatchLoader:
        return self._loader(targets_at, self.config.eval_batch_size, None)

    def _loader(
        self, targets_at: torch.Tensor, batch_size: int, shuffle_seed: int | None
    ) -> BatchLoader:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        return BatchLoader(
            self.sequences.to(device),
            targets_at,
            batch_size=batch_size,
            max_len=self.max_len,
            target_time=self.config.target_time,
            query_time=self.config.query_time,
            last_items=self.config.last_items,
            shuffle_seed=shuffle_seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )


def join_domains(parts: list[PreparedDomain]) -> tuple[FlatSequences, ItemCatalogue]:
    """Join domains: users and items get disjoint ids, in the order of the domains.

    Raises:
        DataError: two domains have features of different encoders for a modality, or only some
            have timestamps.
    """
    if len(parts) == 1:
        return parts[0].sequences, parts[0].catalogue
    for one, other in pairwise(parts):
        if one.catalogue.has_time != other.catalogue.has_time:
            with_time, without = (one, other) if one.catalogue.has_time else (other, one)
            raise DataError(
                f"{with_time.name} has timestamps and {without.name} has none: they cannot be "
                "joined. Next: leave one out"
            )
    first_item = torch.tensor([0, *(part.catalogue.num_items for part in parts)]).cumsum(0)
    first_at = torch.tensor([0, *(len(part.sequences.items_N) for part in parts)]).cumsum(0)
    sequences = FlatSequences(
        torch.cat([p.sequences.items_N + n for p, n in zip(parts, first_item[:-1], strict=True)]),
        torch.cat([part.sequences.timestamps_N for part in parts]),
        torch.cat(
            [first_at[:1]]
            + [p.sequences.offsets_U[1:] + n for p, n in zip(parts, first_at[:-1], strict=True)]
        ),
    )
    features = {
        modality: _join_modality(modality, parts) for modality in parts[0].catalogue.features
    }
    fingerprints = "+".join(part.catalogue.fingerprint for part in parts)
    fingerprint = hashlib.sha256(fingerprints.encode()).hexdigest()[:16]
    return sequences, ItemCatalogue(features, fingerprint, parts[0].catalogue.has_time)


def _join_modality(modality: str, parts: list[PreparedDomain]) -> ModalityFeatures:
    tables = [part.catalogue.features[modality] for part in parts]
    known = [(p.name, t) for p, t in zip(parts, tables, strict=True) if t.encoder_key is not None]
    for (name, table), (other_name, other) in pairwise(known):
        if table.encoder_key != other.encoder_key:
            raise DataError(
                f"{modality} features of {name} come from {table.encoder_key}, those of "
                f"{other_name} from {other.encoder_key}. Next: mmm4rec prepare both with the same "
                f"--{modality}-encoder"
            )
    width = known[0][1].width if known else 0
    padding = torch.zeros(1, width, dtype=known[0][1].values_IF.dtype if known else torch.float16)
    values = [
        table.values_IF[1:] if table.width else padding.expand(len(table.present_I) - 1, width)
        for table in tables
    ]
    present = [torch.zeros(1, dtype=torch.bool), *(table.present_I[1:] for table in tables)]
    blank_F, encoder_key = (known[0][1].blank_F, known[0][1].encoder_key) if known else (None, None)
    return ModalityFeatures(torch.cat([padding, *values]), torch.cat(present), blank_F, encoder_key)
