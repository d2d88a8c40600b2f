"""Where a run computes, and in which precision."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from reid_fast.errors import UserError

_ISA = "ONEDNN_MAX_CPU_ISA"  # what oneDNN may use of the processor's instructions


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there, and make a CUDA device the current one.

    Libraries, capability checks and kernels ask for the current device: so all of a run is on its own.

    Returns:
        The device, a CUDA one with its number.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        device = torch.empty(0, device=device).device  # of "cuda", the number too
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]})") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on `device`: to CUDA its copy is queued, from pinned memory, and the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def require_one_process() -> None:
    """Stop where a launcher has started several: each would train alone, into the same run folder.

    Raises:
        UserError: it has.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(
            f"training runs in one process, not in {processes}: start `python -m reid_fast.train` without torchrun"
        )


def amp_dtype(device: torch.device, wanted: bool, width: int) -> torch.dtype | None:
    """The autocast type: bfloat16 where the device computes in it, else float16; None for full precision.

    Args:
        device: where the encoder runs, as `pick_device` returns it.
        wanted: whether precision may be mixed at all.
        width: of the images, in pixels.

    Raises:
        UserError: this processor computes the bfloat16 convolutions of such narrow images wrongly.
    """
    if not wanted:
        return None
    # oneDNN 3.x reads past the input of a strided AMX convolution at most two columns wide: random numbers, even NaN.
    if device.type == "cpu" and width <= 16 and torch.cpu._is_amx_tile_supported() and _ISA not in os.environ:
        raise UserError(
            f"with --amp this processor computes images of --width {width} wrongly (oneDNN's AMX convolutions): "
            f"take --width 17 or more, train without --amp, or set {_ISA}=AVX512_CORE_BF16 in the environment"
        )
    if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def choose_kernels(deterministic: bool) -> None:
    """Let CUDA libraries pick the fastest kernels, or only those that give the same bits every time.

    Call it before CUDA starts. On the CPU runs repeat bit for bit either way.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
