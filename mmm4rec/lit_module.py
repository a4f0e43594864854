"""How a recommender is trained and ranked, whatever its architecture.

Shape letters: B batch, D d_model, I items with the padding item 0.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from mmm4rec.batch import SequenceBatch
from mmm4rec.config import Config
from mmm4rec.loss import catalogue_loss, in_batch_loss
from mmm4rec.metrics import RankingMetrics, catalogue_rank
from mmm4rec.model import weight_decay_parameters


class Recommender(Protocol):
    """What the training and the evaluation need of a model (an nn.Module)."""

    def __call__(self, batch: SequenceBatch) -> Tensor:
        """Return user_BD."""

    def item_matrix(self) -> Tensor:
        """Return items_ID, row 0 the padding item."""

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return the rows of `item_matrix` for some ids, (N, D)."""

    def score(self, user_BD: Tensor, items_ID: Tensor) -> Tensor:
        """Return scores_BI: the products of every user's vector with every item's."""


class MeanLoss(Metric):
    """The mean loss of an epoch's samples, whose sums survive an interruption."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        """Begin with no sample."""
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Add the mean loss of so many samples."""
        self.total += loss.detach().double() * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Return the mean, float64."""
        return self.total / self.samples


class LitRecommender(LightningModule):
    """Cross-entropy training and full-catalogue ranking of a Recommender."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        """Wrap `model` (a Recommender) with the loss, optimizer and metrics of `config`."""
        super().__init__()
        self.save_hyperparameters({"config": config.as_dict()})
        self.config = config
        self.model = model
        self.train_loss = MeanLoss()
        self.val_metrics = RankingMetrics(config.evaluation.cutoffs)
        self.test_metrics = RankingMetrics(config.evaluation.cutoffs)
        self._items_ID: Tensor | None = None

    @property
    def recommender(self) -> Recommender:
        """The model, as what it can do."""
        return cast(Recommender, self.model)

    def on_train_start(self) -> None:
        """Undo what loading does to NAdam's running product: it takes on the weights' type, device.

        On a GPU it would be waited for once per weight; in float64 it would be another number.
        """
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for state in optimizer.state.values():
            state["mu_product"] = state["mu_product"].to(state["step"])

    def on_train_epoch_start(self) -> None:
        """Forget the loss of the epoch before, which its checkpoint still holds."""
        self.train_loss.reset()

    def on_train_batch_start(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Make dropout a function of seed, epoch and batch, so that a resumed run repeats it."""
        place = (self.config.trainer.seed, self.current_epoch, batch_idx, self.global_rank)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, weighted for gradient accumulation."""
        user_BD = self.recommender(batch)
        settings = self.config.loss
        if settings.candidates == "in_batch":
            items_BD = self.recommender.encode_items(batch.targets_B)
            loss = in_batch_loss(
                self.recommender.score(user_BD, items_BD),
                batch.targets_B,
                mask_duplicates=settings.duplicate_targets == "masked",
            )
        else:
            loss = catalogue_loss(
                user_BD,
                self.recommender.item_matrix(),
                batch.targets_B,
                padding_candidate=settings.padding_candidate == "scored",
            )
        self.train_loss.update(loss, len(batch))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return loss * self._accumulation_weight(batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Encode the catalogue once for all users."""
        self._items_ID = self.recommender.item_matrix()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Rank the targets of a batch."""
        self._rank_step(batch, self.val_metrics)

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Rank the targets of a batch."""
        self._rank_step(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all processes' users."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all processes' users."""
        self._log_metrics("test", self.test_metrics, reset=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the training loss of an epoch that is under way, over all processes."""
        with self.train_loss.sync_context():
            loss = self.train_loss
            checkpoint["train_loss"] = {"total": float(loss.total), "samples": int(loss.samples)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sums of the training loss, on one process."""
        if self.global_rank == 0:
            for name, value in checkpoint["train_loss"].items():
                getattr(self.train_loss, name).fill_(value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return NAdam with coupled L2, on the parameters that the config names."""
        settings = self.config.optimizer
        named = dict(self.model.named_parameters())
        decayed = (
            set(named)
            if settings.decayed_parameters == "all"
            else weight_decay_parameters(self.model)
        )
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in named.items() if n in decayed]},
            {"params": [p for n, p in named.items() if n not in decayed], "weight_decay": 0.0},
        ]
        return torch.optim.NAdam(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            momentum_decay=settings.momentum_decay,
        )

    def _rank_step(self, batch: SequenceBatch, metrics: RankingMetrics) -> None:
        assert self._items_ID is not None
        rank = catalogue_rank(
            self.recommender(batch),
            self._items_ID,
            batch.targets_B,
            padding_candidate=self.config.loss.padding_candidate == "scored",
        )
        metrics.update(batch.users_B, rank)

    def _log_metrics(self, split: str, metrics: RankingMetrics, *, reset: bool = True) -> None:
        for name, value in metrics.compute().items():
            # Equal on every process: the synchronisation changes nothing but a warning.
            self.log(f"{split}/{name}", value, sync_dist=True)
        self._items_ID = None
        if reset:
            metrics.reset()

    def _accumulation_weight(self, batch_idx: int) -> float:
        """Undo Lightning's division by the group size where it is not what is asked.

        Lightning divides every loss by `accumulate_grad_batches`, the last, shorter group's too.
        """
        group = self.trainer.accumulate_grad_batches
        if self.config.optimizer.accumulation == "sum":
            return float(group)
        first = batch_idx - batch_idx % group
        return group / min(group, int(self.trainer.num_training_batches) - first)
