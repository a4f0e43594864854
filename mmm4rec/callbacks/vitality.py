"""Whether every part of a model is alive: its gradient against the pull of its weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from mmm4rec.layers.co_ti_ssd import TiCoSSD
from mmm4rec.layers.feed_forward import FeedForward
from mmm4rec.layers.fourier import TimeFilter
from mmm4rec.layers.item_encoder import ItemEncoder
from mmm4rec.layers.layer import Layer
from mmm4rec.layers.norm import GatedRMSNorm, LayerNorm
from mmm4rec.layers.ti_ssd import TiSSD
from mmm4rec.layers.time import TimeEncoder, TimeGate, TimeScale
from mmm4rec.model import is_domain_bound

# What a parameter is part of: the first kind that one of the modules around it is of.
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "time": (TimeEncoder, TimeScale, TimeGate),
    "filter": (TimeFilter,),
    "norms": (LayerNorm, GatedRMSNorm),
    "co_ti_ssd": (TiCoSSD,),
    "ti_ssd": (TiSSD,),
    "feed_forward": (FeedForward,),
    "item_encoder": (ItemEncoder,),
}

LEAST_WEIGHT = 1e-3  # share of the norm at the start
# Coupled L2 and the loss balance at 1. Where the loss has a hundredth of the pull, nothing but the
# decay decides, and the weights go to 0.
LEAST_PULL = 1e-2
PATIENCE = 3  # epochs in a row


class Pulse(NamedTuple):
    """What was measured of a group of parameters, all L2 norms.

    Attributes:
        gradient: of the loss alone.
        weight: of the weights.
        decay: of weight decay times weights; 0 where nothing decays.
    """

    gradient: float
    weight: float
    decay: float


class Vitality(Callback):
    """Logs the pulse of every part of the model, and says which part dies.

    At the last optimizer step of each epoch, before it is taken: `watch/gradient/<group>`,
    `watch/weight/<group>` as a share of the start, and `watch/pull/<group>`, gradient over decay,
    where there is any decay. A part dies whose weights fall below `LEAST_WEIGHT`, or whose pull
    stays below `LEAST_PULL`, or which has no gradient at all, for `PATIENCE` epochs; it is named
    once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Warn through `say`."""
        self._say = say
        self._start: dict[str, float] = {}
        self._weak_epochs: dict[str, int] = {}
        self._named: list[str] = []
        self._batch_idx = 0
        self._pulses: dict[str, Pulse] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weigh the groups before the first step of a run."""
        if not self._start:
            pulses = take_pulses(pl_module.get_submodule("model"), {})
            self._start = {group: pulse.weight for group, pulse in pulses.items()}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the place in the epoch."""
        self._batch_idx = batch_idx

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure before the last step of the epoch."""
        if self._batch_idx + 1 == trainer.num_training_batches:
            decay = {
                parameter: group["weight_decay"]
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            self._pulses = take_pulses(pl_module.get_submodule("model"), decay)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and judge."""
        for group, pulse in self._pulses.items():
            start = self._start[group]
            pl_module.log(f"watch/gradient/{group}", pulse.gradient, sync_dist=True)
            if start > 0:
                pl_module.log(f"watch/weight/{group}", pulse.weight / start, sync_dist=True)
            if pulse.decay > 0:
                pull = pulse.gradient / pulse.decay
                pl_module.log(f"watch/pull/{group}", pull, sync_dist=True)
            self._judge(group, pulse)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered from epoch to epoch."""
        return {"start": self._start, "weak_epochs": self._weak_epochs, "named": self._named}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what an interrupted run remembered."""
        self._start = dict(state_dict["start"])
        self._weak_epochs = dict(state_dict["weak_epochs"])
        self._named = list(state_dict["named"])

    def _judge(self, group: str, pulse: Pulse) -> None:
        is_weak = pulse.gradient <= LEAST_PULL * pulse.decay
        self._weak_epochs[group] = self._weak_epochs.get(group, 0) + 1 if is_weak else 0
        share = pulse.weight / self._start[group] if self._start[group] else 1.0
        if share < LEAST_WEIGHT:
            self._name(group, f"its weights fell to {share:.1e} of those at the start")
        elif self._weak_epochs[group] >= PATIENCE and pulse.gradient == 0:
            self._name(group, f"no gradient reached it, {PATIENCE} epochs in a row")
        elif self._weak_epochs[group] >= PATIENCE:
            pull = pulse.gradient / pulse.decay
            reason = f"its gradient is {pull:.1e} of its weight decay, {PATIENCE} epochs in a row"
            self._name(group, reason)

    def _name(self, group: str, reason: str) -> None:
        if group not in self._named:
            self._named.append(group)
            self._say(
                f"warning: {group} is dying: {reason}. Next: --set optimizer.weight_decay=0, or "
                "--set optimizer.decayed_parameters=weights"
            )


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters by what they are part of, such as `layer0/filter`.

    What no kind covers is grouped by the first part of its name.
    """
    modules = dict(model.named_modules())
    layers = [module for module in modules.values() if isinstance(module, Layer)]
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        around = [modules[".".join(parts[:n])] for n in range(1, len(parts))]
        prefix = "".join(f"layer{layers.index(m)}/" for m in around if isinstance(m, Layer))
        groups.setdefault(prefix + _kind(name, around), []).append(parameter)
    return groups


def _kind(name: str, around: list[nn.Module]) -> str:
    if is_domain_bound(name):
        return name.split(".")[1]
    fitting = (
        kind for kind, types in KINDS.items() if any(isinstance(module, types) for module in around)
    )
    return next(fitting, name.partition(".")[0])


@torch.no_grad()
def take_pulses(model: nn.Module, decay: dict[nn.Parameter, float]) -> dict[str, Pulse]:
    """Measure every group of parameters.

    Args:
        model: with gradients where there are any.
        decay: weight decay of each parameter; one that is not there has none.
    """
    return {
        group: Pulse(
            gradient=_norm(p.grad for p in parameters if p.grad is not None),
            weight=_norm(parameters),
            decay=math.hypot(*(decay.get(p, 0.0) * _norm([p]) for p in parameters)),
        )
        for group, parameters in parameter_groups(model).items()
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors))
