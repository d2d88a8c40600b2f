"""The border of the clustering functions: features of any float type become checked, L2-normalised rows."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Features: TypeAlias = "Tensor | np.ndarray"

# Rows this close to unit length are used where they lie: a second division would only move the last bits.
_UNIT = 1e-5


def normalised_rows(features: Features) -> Tensor:
    """`features` as L2-normalised rows, float32, C-contiguous, on their device.

    Rows that are that already are used where they lie, mapped files and read-only arrays too; others are copied once.

    Args:
        features: [N, D], any float type, any strides, NumPy or torch.

    Returns:
        [N, D], without a gradient.

    Raises:
        TypeError: not an array or a tensor of floats.
        ValueError: not [N, D] with N, D ≥ 1, or a row (named) that is zero or holds NaN or infinity.
    """
    rows = _as_tensor(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"features must be [N, D] with N and D at least 1, not {list(rows.shape)}")
    rows = rows.detach().float().contiguous()
    norms = torch.linalg.vector_norm(rows, dim=1)
    if len(bad := (~norms.isfinite()).nonzero()):
        raise ValueError(f"features: row {bad[0].item()} holds NaN, infinity or values beyond float32")
    if len(bad := (norms < torch.finfo(torch.float32).tiny).nonzero()):
        raise ValueError(f"features: row {bad[0].item()} is zero, so it has no direction")
    if (norms - 1).abs().max() <= _UNIT:
        return rows
    ours = rows.data_ptr() != _address(features)
    return rows.div_(norms[:, None]) if ours else rows / norms[:, None]


def clip_k(k: int, n: int, name: str) -> int:
    """`k` neighbours, self included, out of `n` rows: at least 1, and with a warning at most `n`."""
    if k < 1:
        raise ValueError(f"{name} must be at least 1, not {k}")
    if k > n:
        warnings.warn(f"{name} = {k} neighbours asked of {n} rows; {name} = {n} is used", stacklevel=3)
    return min(k, n)


def _address(features: Features) -> int:
    return features.data_ptr() if isinstance(features, Tensor) else features.ctypes.data


def _as_tensor(features: Features) -> Tensor:
    if isinstance(features, np.ndarray):
        if features.dtype.kind != "f":
            raise TypeError(f"features must be floats, not {features.dtype}")
        # torch takes neither negative strides, nor foreign bytes, nor long doubles, and trusts that values are aligned;
        # of what is read-only it warns.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(np.require(features, np.float32, ["C", "ALIGNED"]))
    if isinstance(features, Tensor):
        if not features.is_floating_point():
            raise TypeError(f"features must be floats, not {features.dtype}")
        return features
    raise TypeError(f"features must be a NumPy array or a torch tensor, not {type(features).__name__}")
