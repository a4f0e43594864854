"""State space duality (SSD): the selective state space of Mamba-2, one door to three backends.

    h_l = exp(A delta_l) h_{l-1} + delta_l B_l x_l        delta_l = softplus(dt_l + dt_bias)
    y_l = C_l . h_l + skip

Shape letters: B batch, L length, H heads, P head width, G groups of B and C (dividing the heads),
N state; K is a second index over positions, W those at which the state is read.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm4rec.errors import ConfigError
from mmm4rec.ops.pieces import in_pieces
from mmm4rec.ops.precision import at_least_float32, full_precision

Backend = Literal["auto", "quadratic", "recurrent", "mamba"]
Skip = Literal["unscaled", "scaled_by_step"]

# Programs along the kernel's batch-and-chunk axis that one CUDA launch may have.
MAX_KERNEL_GRID = 65_535

logger = logging.getLogger(__name__)


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    skip: Skip = "unscaled",
    backend: Backend = "auto",
    read_at_BW: Tensor | None = None,
) -> Tensor:
    """Run the selective state space over each sequence (Mamba-2, arXiv:2405.21060).

    Args:
        x_BLHP: input, (B, L, H, P).
        dt_BLH: step before bias and softplus, (B, L, H).
        A_H: decay rate per head, negative.
        B_BLGN: how the input enters the state; G divides H, neighbouring heads share a group.
        C_BLGN: how the state is read; (B, W, G, N) with `read_at_BW`.
        D_H: weight of the skip term.
        dt_bias_H: added to `dt_BLH` inside the softplus.
        skip: `unscaled` adds D x as Mamba-2 does. Differs from the official code, which adds
            D delta x: that is `scaled_by_step`.
        backend: `recurrent` (step by step, the oracle), `quadratic` (one decay matrix, for short
            sequences), `mamba` (mamba-ssm's Triton kernels) or `auto`, which is `mamba` on CUDA
            where it is installed and `quadratic` elsewhere.
        read_at_BW: the only positions at which the state is read, int64, none of them twice in a
            row; None: all.

    Returns:
        y_BLHP, or y_BWHP, in the type of `x_BLHP`. Steps, decay and sums are float32 at least.

    Raises:
        ConfigError: `mamba` is asked for where it is not installed or there is no CUDA.
    """
    assert x_BLHP.shape[2] % B_BLGN.shape[2] == 0, "the groups divide the heads"
    chosen = _choose(x_BLHP) if backend == "auto" else backend
    if chosen == "quadratic":
        read = _quadratic(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, skip, read_at_BW)
        return read.to(x_BLHP.dtype)
    run = _RECURRENCES[chosen]
    if read_at_BW is None:
        return run(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, skip).to(x_BLHP.dtype)
    # These go through all positions anyway: elsewhere nothing is read.
    at_BWGN = read_at_BW[:, :, None, None].expand_as(C_BLGN)
    C_BLGN = torch.zeros_like(B_BLGN).scatter(1, at_BWGN, C_BLGN.to(B_BLGN.dtype))
    y_BLHP = run(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, skip).to(x_BLHP.dtype)
    return y_BLHP.take_along_dim(read_at_BW[:, :, None, None], dim=1)


def available_backends() -> tuple[str, ...]:
    """Return the backends that are installed.

    >>> set(available_backends()) >= {"recurrent", "quadratic"}
    True
    """
    found = all(importlib.util.find_spec(name) for name in ("mamba_ssm", "triton"))
    return ("recurrent", "quadratic", "mamba") if found else ("recurrent", "quadratic")


def _choose(x_BLHP: Tensor) -> str:
    fits = x_BLHP.is_cuda and x_BLHP.dtype != torch.float64
    chosen = "mamba" if fits and "mamba" in available_backends() else "quadratic"
    _log_choice(chosen, x_BLHP.device.type)
    return chosen


@functools.cache
def _log_choice(backend: str, device: str) -> None:
    logger.info("ssd_backend auto: %s on %s", backend, device)


def _step(dt_BLH: Tensor, dt_bias_H: Tensor) -> Tensor:
    return F.softplus(at_least_float32(dt_BLH) + at_least_float32(dt_bias_H))


def _recurrent(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    skip: Skip,
) -> Tensor:
    heads_per_group = x_BLHP.shape[2] // B_BLGN.shape[2]
    with full_precision(x_BLHP):
        x_BLHP, D_H = at_least_float32(x_BLHP), at_least_float32(D_H)
        step_BLH = _step(dt_BLH, dt_bias_H)
        B_BLHN = at_least_float32(B_BLGN).repeat_interleave(heads_per_group, dim=2)
        C_BLHN = at_least_float32(C_BLGN).repeat_interleave(heads_per_group, dim=2)
        state_BHPN = x_BLHP.new_zeros(*x_BLHP[:, 0].shape, B_BLGN.shape[-1])
        outputs: list[Tensor] = []
        for position in range(x_BLHP.shape[1]):
            step_BH = step_BLH[:, position]
            decay_BH = torch.exp(at_least_float32(A_H) * step_BH)
            entering_BHP = step_BH[..., None] * x_BLHP[:, position]
            entering_BHPN = entering_BHP[..., None] * B_BLHN[:, position, :, None]
            state_BHPN = decay_BH[..., None, None] * state_BHPN + entering_BHPN
            read_BHP = (state_BHPN * C_BLHN[:, position, :, None]).sum(-1)
            passed_BHP = entering_BHP if skip == "scaled_by_step" else x_BLHP[:, position]
            outputs.append(read_BHP + D_H[:, None] * passed_BHP)
        return torch.stack(outputs, dim=1)


def _quadratic(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    skip: Skip,
    read_at_BW: Tensor | None,
) -> Tensor:
    if read_at_BW is None:
        read_at_BW = torch.arange(x_BLHP.shape[1], device=x_BLHP.device).expand(len(x_BLHP), -1)
    return in_pieces(
        functools.partial(_quadratic_piece, skip=skip),
        (x_BLHP, B_BLGN, C_BLGN, dt_BLH, read_at_BW),
        (A_H, D_H, dt_bias_H),
    )


def _quadratic_piece(
    x_BLHP: Tensor,
    B_BLGN: Tensor,
    C_BWGN: Tensor,
    dt_BLH: Tensor,
    read_at_BW: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    skip: Skip,
) -> Tensor:
    num_groups, length = B_BLGN.shape[2], x_BLHP.shape[1]
    # Where the state is read, as distances: 0 at the position itself, positive before it.
    distance_BWK = read_at_BW[..., None] - torch.arange(length, device=x_BLHP.device)
    with full_precision(x_BLHP):
        step_BHL = _step(dt_BLH, dt_bias_H).mT
        log_decay_BHL = at_least_float32(A_H)[:, None] * step_BHL
        decay_BHWK = _decay(log_decay_BHL, read_at_BW, distance_BWK)
        skip_BHL = at_least_float32(D_H)[:, None] * (
            step_BHL if skip == "scaled_by_step" else torch.ones_like(step_BHL)
        )
        own_BHWK = skip_BHL[:, :, None] * (distance_BWK == 0)[:, None]
    affinity_BGWK = torch.matmul(C_BWGN.transpose(1, 2), B_BLGN.permute(0, 2, 3, 1))
    # Step and skip join the W x L matrix, which is smaller than x: y is then one product.
    kernel_BHWK = decay_BHWK * step_BHL[:, :, None, :]
    kernel_BGRWK = kernel_BHWK.unflatten(1, (num_groups, -1)) * affinity_BGWK[:, :, None]
    kernel_BHWK = kernel_BGRWK.flatten(1, 2) + own_BHWK
    y_BHWP = torch.matmul(kernel_BHWK.to(x_BLHP.dtype), x_BLHP.transpose(1, 2))
    return y_BHWP.transpose(1, 2)


def _decay(log_decay_BHL: Tensor, read_at_BW: Tensor, distance_BWK: Tensor) -> Tensor:
    """Return exp(sum of log_decay over k+1..w) for k <= w and 0 above, (B, H, W, K)."""
    total_BHL = log_decay_BHL.cumsum(-1)
    total_BHW = total_BHL.take_along_dim(read_at_BW[:, None], -1)
    # Above the diagonal the difference is positive and its exp may overflow: -inf goes in first.
    later_BWK = torch.zeros_like(distance_BWK, dtype=total_BHL.dtype)
    later_BWK = later_BWK.masked_fill(distance_BWK < 0, -torch.inf)
    return torch.exp(total_BHW[..., :, None] - total_BHL[..., None, :] + later_BWK[:, None])


def _mamba(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    skip: Skip,
) -> Tensor:
    scan = _load_kernel(x_BLHP)
    length = x_BLHP.shape[1]
    chunk_size = min(max(16, 1 << (length - 1).bit_length()), 128)
    rows = MAX_KERNEL_GRID // -(-length // chunk_size)
    with full_precision(x_BLHP):
        parts = [
            scan(
                x_part,
                dt_part.float(),
                A_H.float(),
                B_part.to(x_BLHP.dtype),
                C_part.to(x_BLHP.dtype),
                chunk_size,
                D=D_H.float() if skip == "unscaled" else None,
                dt_bias=dt_bias_H.float(),
                dt_softplus=True,
            )
            for x_part, dt_part, B_part, C_part in zip(
                *(tensor.split(rows) for tensor in (x_BLHP, dt_BLH, B_BLGN, C_BLGN)), strict=True
            )
        ]
        y_BLHP = torch.cat(parts) if len(parts) > 1 else parts[0]
        if skip == "scaled_by_step":
            weight_BLH = D_H.float() * _step(dt_BLH, dt_bias_H)
            y_BLHP = y_BLHP + weight_BLH[..., None] * x_BLHP
    return y_BLHP


def _load_kernel(x_BLHP: Tensor) -> Callable[..., Any]:
    if "mamba" not in available_backends():
        raise ConfigError(
            "model.ssd_backend is mamba, but mamba-ssm and triton are not installed "
            f"(available: {', '.join(available_backends())}). Next: MAMBA_SKIP_CUDA_BUILD=TRUE "
            "MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm triton "
            "einops packaging setuptools, or --set model.ssd_backend=auto"
        )
    if not x_BLHP.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"model.ssd_backend is mamba, which needs CUDA, but the data is on "
            f"{x_BLHP.device.type}. Next: --set model.ssd_backend=auto"
        )
    # mamba_ssm imports Mamba-1's compiled extension on the way; SSD does not use it.
    extension = "selective_scan_cuda"
    if extension not in sys.modules and importlib.util.find_spec(extension) is None:
        sys.modules[extension] = types.ModuleType(extension)
    module = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    return module.mamba_chunk_scan_combined


_RECURRENCES: dict[str, Callable[..., Tensor]] = {"recurrent": _recurrent, "mamba": _mamba}
