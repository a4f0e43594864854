"""A stop at the first loss or gradient that is not finite, with everything that led to it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mmm4rec.batch import SequenceBatch
from mmm4rec.errors import DivergenceError

LOOK = (
    "from safetensors.torch import load_file; "
    "print([n for n, x in load_file('{path}').items() if not x.isfinite().all()])"
)


class NonFiniteGuard(Callback):
    """Stops a run before a loss or gradient that is not finite reaches the weights.

    Looks once per optimizer step, at the losses that it stands on and the norm of the gradient.
    Then `<folder>/non_finite.<rank>.safetensors` holds the batch, the weights and the gradients.
    """

    def __init__(self, folder: Path) -> None:
        """Save to `folder` what led to it."""
        self._folder = folder
        self._batches: list[tuple[int, SequenceBatch]] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch."""
        self._batches.append((batch_idx, batch))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note the loss of the batch."""
        self._losses.append(loss.detach().double())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the losses and the gradient of the step.

        Raises:
            DivergenceError: one is not finite.
        """
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        # One number, so that a GPU is waited for once.
        total = torch.stack([get_total_norm(gradients).double(), *self._losses]).sum()
        if not torch.isfinite(total):
            self._stop_if_diverged(trainer, pl_module)
        self._batches, self._losses = [], []

    def _stop_if_diverged(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bad_losses = [n for n, loss in enumerate(self._losses) if not torch.isfinite(loss)]
        at = bad_losses[0] if bad_losses else -1
        batch_idx, batch = self._batches[at]
        first = self._find_first_in_forward(trainer, pl_module, batch_idx, batch)
        first = first or ("the loss" if bad_losses else find_first_gradient(pl_module))
        if first is None:
            return  # large numbers that are still finite
        place = {
            "step": trainer.global_step + 1,
            "epoch": trainer.current_epoch + 1,
            "batch": batch_idx + 1,
            "loss": float(self._losses[at]),
            "first": first,
        }
        path = self._folder / f"non_finite.{trainer.global_rank}.safetensors"
        _save(path, pl_module, batch, place)
        what = "loss" if bad_losses else "gradient"
        raise DivergenceError(
            f"step {place['step']}, epoch {place['epoch']}, batch {place['batch']}: the {what} is "
            f"not finite (share of the loss: {place['loss']}); first: {place['first']}. The batch, "
            f"the weights and the gradients are in {path}. Next: a lower optimizer.lr, or "
            f'python -c "{LOOK.format(path=path)}"'
        )

    def _find_first_in_forward(
        self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, batch: SequenceBatch
    ) -> str | None:
        for name, weight in pl_module.named_parameters():
            if not weight.isfinite().all():
                return f"the weight {name}"
        pl_module.on_train_batch_start(batch, batch_idx)  # the same dropout again
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            module = find_first_output(pl_module.get_submodule("model"), batch)
        return f"the output of {module}" if module else None


def find_first_gradient(module: nn.Module) -> str | None:
    """Return the first parameter, in their order, whose gradient is not finite."""
    for name, weight in module.named_parameters():
        if weight.grad is not None and not weight.grad.isfinite().all():
            return f"the gradient of {name}"
    return None


def find_first_output(model: nn.Module, batch: SequenceBatch) -> str | None:
    """Run a model and return the name of the first module that returns a non-finite tensor."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensors = [x for x in _flatten(output) if x.is_floating_point()]
            if any(not x.isfinite().all() for x in tensors):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(look(name)) for name, module in model.named_modules() if name
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _flatten(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _flatten(part)]
    return []


def _save(
    path: Path, pl_module: LightningModule, batch: SequenceBatch, place: dict[str, Any]
) -> None:
    named = dict(pl_module.get_submodule("model").named_parameters())
    tensors = {
        **{f"batch.{f.name}": getattr(batch, f.name) for f in fields(batch)},
        **{f"weight.{name}": weight for name, weight in named.items()},
        **{f"gradient.{name}": weight.grad for name, weight in named.items()},
    }
    plain = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(plain, temporary, metadata={"place": json.dumps(place)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
