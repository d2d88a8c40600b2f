"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reid_fast.errors import UserError

_ISA = "ONEDNN_MAX_CPU_ISA"  # what oneDNN may use of the processor's instructions


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there, and make a CUDA device the current one.

    Libraries, capability checks and kernels ask for the current device: so all of a run is on its own.

    Args:
        name: without a number, CUDA devices go round.
        local_rank: this process among those of its machine.

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
        if device == torch.device("cuda"):
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]})") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on `device`: to CUDA its copy is queued, from pinned memory, and the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def pinned(*shape: int) -> Tensor:
    """Uint8 without values in memory of the host from which a copy to CUDA can be queued; any thread may ask."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def amp_dtype(device: torch.device, wanted: bool, width: int) -> torch.dtype | None:
    """The autocast type: bfloat16 where the device computes in it, on other GPUs float16; None for full precision.

    A processor that only emulates bfloat16 computes in full precision: with AVX2 alone, a step of a ResNet-18 takes
    fourteen times as long in bfloat16.

    Args:
        device: where the encoder runs, as `pick_device` returns it.
        wanted: whether precision may be mixed at all.
        width: of the images, in pixels.

    Raises:
        UserError: this processor computes the bfloat16 convolutions of such narrow images wrongly.
    """
    if not wanted or emulates_bfloat16(device):
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


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether a processor without instructions for bfloat16 computes it by way of float32, and takes longer than that.

    Known of x86 alone.
    """
    x86 = device.type == "cpu" and torch.cpu._is_avx2_supported()
    return x86 and not torch.cpu._is_avx512_bf16_supported()


def choose_kernels(deterministic: bool) -> None:
    """Let CUDA libraries pick the fastest kernels, or only those that give the same bits every time.

    Call it before CUDA starts. On the CPU runs repeat bit for bit either way.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pick_threads(asked: int, processes: int = 1) -> int:
    """CPU threads of a process: as many as are asked for, or, for 0, its share of the cores that it may use.

    Args:
        asked: 0 or more.
        processes: that share the machine.
    """
    return asked or max(1, len(os.sched_getaffinity(0)) // processes)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch and the extension, which reads the environment each time, compute in `count` CPU threads."""
    before, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if asked is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = asked


def free_bytes(device: torch.device) -> int:
    """What torch can hand out on a CUDA device: its free memory, and what torch's allocator holds without using it.

    On the CPU what this process may still take, see `host_memory`.
    """
    if device.type == "cpu":
        return host_memory()[1]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory that this process may have in all, and those of them that are free.

    They are the machine's (free is what Linux calls available), or less where a control group, such as a container's
    or a scheduler's job, has a limit: whoever exceeds it is killed.

    Args:
        root: below which `proc` and `sys` lie.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    found = [(whole, int(available[1]) << 10 if available else whole), *_group_memory(root)]
    return min(limit for limit, _ in found), min(free for _, free in found)


def _group_memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, free) bytes of the control groups around this process, each of which binds it; v2's, and v1's."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, own = line.split(":", 2)
        if kinds == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = top / own.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            limit, used = (_text(folder / name).strip() for name in names[:2])
            if limit.isdecimal() and used.isdecimal():
                # Pages of files count as used, and those that were not read again are given back.
                cached = re.search(rf"^{names[2]} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield int(limit), max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def _text(path: Path) -> str:
    """Of a file that need not be there."""
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 as float32: no autocast, TF32 or bfloat16 inside, whatever the caller has chosen.

    Autocast is a matter of the thread, the precision of products one of the process: meanwhile other threads multiply
    in full too, and must not change it. Afterwards everything is as before, so that compiled code, which asks for the
    precision when it is entered, is not compiled anew.
    """
    # torch 2.9 lets products be set by library, beside the older setting for all, and refuses to read the older one
    # while the two contradict each other.
    new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if new else ()  # type: ignore[attr-defined]
    before = [library.fp32_precision for library in libraries]
    for library in libraries:
        library.fp32_precision = "ieee"
    for_all = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(for_all)
        for library, precision in zip(libraries, before, strict=True):
            library.fp32_precision = precision
