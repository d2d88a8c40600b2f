"""What the compiler says of every kernel at training sizes, without a GPU: registers, spills, occupancy, pipelining.

The launchers run on meta tensors; each launch is recorded and compiled ahead of time with exactly the sizes,
types and constants it would have on a GPU. Needs TRITON_INTERPRET unset, so a process of its own: the tests and
bench/ops.py run this file.

Pipelining is read from the innermost loops around tensor-core products in TTGIR, the widths of other accesses from PTX.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reid_fast.kernels.tiles import DOT_TYPES

ARCHITECTURES = (80, 90, 100)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHARED_PER_SM = {80: 164, 90: 228, 100: 228}  # KiB
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    kernel: triton.JITFunction
    arguments: dict


class Row(NamedTuple):
    kernel: str
    dtype: str
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int
    blocks_per_sm: int
    products: int  # tl.dot in the kernel; what follows is 0 without one
    buffers: int  # of shared memory for the operands of a step, the fewest
    ahead: int  # steps whose copies are on their way while one is multiplied, the fewest
    copy_bytes: int  # of one copy to those buffers, the narrowest; 0 if an operand goes another way
    load_bytes: int  # the widest other access
    store_bytes: int


def launches(dtype: torch.dtype) -> Iterator[Launch]:
    """Every kernel launch of the ops at training sizes: B = 256, C = 2,000, D = 2048, N = 12,936."""
    B, C, D, N = 256, 2000, 2048, 12936
    new = lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    index = lambda *shape: new(*shape, dtype=torch.int64)  # noqa: E731
    flat = lambda *shape: new(*shape, dtype=torch.float32)  # noqa: E731
    x, memory, labels = new(B, D), new(C, D), index(B)
    span, weights, masses = index(B, 2), flat(B), flat(B, C)
    store = (new(N, 256, 128, 3, dtype=torch.uint8), index(B), new(B, dtype=torch.bool))
    store = (*store, new(B, 2, dtype=torch.int32), new(B, 4, dtype=torch.int32))
    numbers = ([0.1, 0.2, 0.3],) * 3
    attention = (new(8, N, 256), new(8, N, 256), flat(), index(700))
    hybrid = (x[:64], flat(C, D), index(C), index(N), labels[:64])
    maps, norms = new(B, 256, 64, 32).to(memory_format=torch.channels_last), ([flat(256)],) * 4
    moments = (flat(4, 256), flat(4, 256), 64, 1e-5, True)
    calls: list[tuple[str, str, tuple]] = [
        ("cluster_nce", "cluster_nce", (x, memory, labels, 0.05, True, None, None, True)),
        ("cluster_nce", "cluster_nce", (x, memory, labels, 0.05, True, None, None, False)),
        ("cluster_nce", "cluster_nce", (x, flat(C, D), labels, 0.05, True, span, weights, True)),
        ("hybrid_nce", "hybrid_nce", (*hybrid, 0.05, 4.0, 1e-6, True, True)),
        ("hybrid_nce", "hybrid_update", (new(N, D), flat(C, D), index(C), index(N), x[:64], labels[:64], 0.2)),
        ("target_nce", "target_nce", (x, memory, labels, 0.05, True, 0.0, masses, None, None, True)),
        ("target_nce", "target_nce", (x, memory, labels, 0.5, False, 0.1, None, None, None, True)),
        ("target_nce", "target_nce", (x, flat(C, D), labels, 0.5, True, 0.1, None, span, weights, True)),
        ("target_nce", "target_nce", (x, memory, labels, 0.5, True, 0.1, None, None, None, False)),
        ("cluster_step", "cluster_step", (x, memory, labels, 0.05, 0.1, "serial", None, None, True)),
        ("camera_nce", "camera_nce", (x[:32], memory, index(C), labels[:32], 0.07, 50, None, True, True)),
        ("camera_nce", "camera_nce", (x, memory, index(C), labels, 0.07, 50, weights, True, True)),
        ("augment", "augment", (*store, None, False, *numbers, dtype)),
        ("augment", "augment", (*store, flat(B), True, *numbers, dtype)),
        ("grouped_bn", "grouped_bn", (maps, None, *norms, 64, 0.1, 1e-5, True)),
        ("grouped_bn", "grouped_bn", (maps, maps, *norms, 64, 0.1, 1e-5, True)),
        ("grouped_bn", "grouped_bn_backward", (maps, maps, None, *norms[:2], *moments)),
        ("grouped_bn", "grouped_bn_backward", (maps, maps, maps, *norms[:2], *moments)),
        ("bias_relu", "bias_relu", (maps, flat(256), maps, True)),
        ("cluster_attention", "received_attention", attention),
        ("cluster_attention", "received_attention_backward", (flat(N), *attention, flat(8, N))),
    ]
    for mode in ("serial", "hard", "weighted", "pick"):
        calls.append(("memory_update", "memory_update", (memory, x, labels, 0.1, mode, 0.03, weights)))
    for call in calls:
        yield from _launched(*call)
    if dtype == torch.float32:
        first = {name: (module, name, arguments) for module, name, arguments in reversed(calls)}
        with cuda_autocast(torch.bfloat16):
            multiplied_low = [_launched(*first[name]) for name in ("cluster_step", "target_nce", "camera_nce")]
        yield from chain.from_iterable(multiplied_low)


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """`torch.autocast("cuda")` where torch has no CUDA, too."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def _launched(module: str, name: str, arguments: tuple) -> list[Launch]:
    return _record(lambda: getattr(import_module(f"reid_fast.kernels.{module}"), name)(*arguments))


def _record(call: Callable[[], object]) -> list[Launch]:
    recorded, run = [], triton.JITFunction.run
    try:
        triton.JITFunction.run = lambda kernel, *args, grid, warmup, **kwargs: recorded.append(
            Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs)
        )
        call()
    finally:
        triton.JITFunction.run = run
    return recorded


def compile_for(launch: Launch, arch: int) -> triton.compiler.CompiledKernel:
    """The compiled kernel, specialised as Triton's launcher would."""
    kernel, arguments = launch
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value, name = arguments[parameter.name], parameter.name
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(place,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    options = {key: arguments[key] for key in ("num_warps", "num_stages") if key in arguments}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(launch: Launch, dtype: torch.dtype, arch: int) -> Row:
    compiled = compile_for(launch, arch)
    registers, spilled = _resources(compiled, arch)
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    by_registers = 65536 // (max(registers, 1) * 32 * warps)
    by_shared = SHARED_PER_SM[arch] * 1024 // (shared + 1024)
    blocks = min(by_registers, by_shared, 64 // warps, 32)
    module = launch.kernel.fn.__module__.rsplit(".", 1)[1]
    name = f"{module}.{launch.kernel.fn.__name__}"
    switches = [
        f"{key}={value}"
        for key, value in launch.arguments.items()
        if key in ("MODE", "KEYS", "DENSE", "HYBRID", "HAS_SPANS", "HAS_BLUR", "GRAD", "RESIDUAL") and value
    ]
    if (dot := launch.arguments.get("DOT")) not in (None, DOT_TYPES[dtype]):
        switches.append(f"DOT={dot}")
    products = compiled.asm["ttir"].count("tt.dot ")
    pipeline = _pipeline(compiled.asm["ttgir"]) if products else (0, 0, 0)
    widths = [_widest(compiled.asm["ptx"], access) for access in ("ld", "st")]
    resources = (registers, spilled, shared, warps, blocks)
    return Row(" ".join([name, *switches]), str(dtype)[6:], arch, *resources, products, *pipeline, *widths)


def _pipeline(ir: str) -> tuple[int, int, int]:
    """(buffers, ahead, copy_bytes) of the innermost loops around products, from TTGIR; zeros if there is none."""
    buffers = re.findall(r"local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x\w+, #\w+, #smem, mutable>", ir)
    ahead, copies = [], []
    for loop in _innermost_loops(ir):
        if re.search(r"= tt\.dot |warp_group_dot |tc_gen5_mma ", loop):
            groups = loop.count("ttg.async_commit_group")
            ahead += [int(n) // max(1, groups) for n in re.findall(r"ttg\.async_wait .*{num = (\d+)", loop) or "0"]
            for line in re.findall(r".*(?:async_copy_global_to_local|tt\.load) .*tensor<\d+x\d+x!tt\.ptr<.*", loop):
                bits, lanes = re.search(r"ptr<[a-z]+(\d+)>", line)[1], re.search(r"contiguity = (\d+)", line)
                copies.append(0 if "tt.load" in line else int(bits) // 8 * int(lanes[1] if lanes else 1))
    return min(map(int, buffers), default=0), min(ahead, default=0), min(copies, default=0)


def _innermost_loops(ir: str) -> Iterator[str]:
    """The bodies of the loops that hold no other one."""
    lines, start = re.sub(r" loc\(.*", "", ir).splitlines(), None
    for number, line in enumerate(lines):
        if " scf.for " in line or " scf.while " in line:
            start = number
        elif start is not None and "scf.yield" in line and _depth(line) == _depth(lines[start]) + 2:
            yield "\n".join(lines[start + 1 : number])
            start = None


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _widest(ptx: str, access: str) -> int:
    """Bytes of the widest access to global memory that is no asynchronous copy, from PTX."""
    found = re.findall(rf"\b{access}\.global(?:\.[a-z_:0-9]+?)*?(?:\.v(\d))?\.[bfsu](\d+)", ptx)
    return max((int(lanes or 1) * int(bits) // 8 for lanes, bits in found), default=0)


def _resources(compiled: triton.compiler.CompiledKernel, arch: int) -> tuple[int, int]:
    """(registers a thread, bytes of spill stores and loads)."""
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(compiled.asm["cubin"])
        used = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary)
        found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
        if not found["STACK"] + found["LOCAL"]:
            return found["REG"], 0
        # A stack may be there for other reasons than a spill: let the assembler say.
        text.write_text(compiled.asm["ptx"])
        nvidia = triton.knobs.nvidia
        assembler = (nvidia.ptxas_blackwell if arch >= 100 else nvidia.ptxas).path
        target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"]).group(1)
        said = _run(assembler, "-v", f"--gpu-name={target}", text, "-o", Path(folder, "again"))
        return found["REG"], sum(map(int, re.findall(r"(\d+) bytes spill", said)))


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _rows(dtype: torch.dtype, everything: bool) -> list[Row]:
    found = []
    for launch in launches(dtype):
        # What has no products compiles much the same everywhere, and a loss alone is part of one with its gradient.
        widely = everything or ("DOT" in launch.arguments and launch.arguments.get("GRAD", True))
        architectures = ARCHITECTURES if widely else (90,)
        found += [measure(launch, dtype, arch) for arch in architectures]
    return found


def table(dtypes: tuple[torch.dtype, ...], everything: bool) -> list[Row]:
    """One row per kernel, type and architecture; launches that compile to the same row are listed once."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = pool.map(_rows, dtypes, [everything] * len(dtypes))
        return list(dict.fromkeys(row for part in parts for row in part))


def main() -> None:
    """Print the table as JSON: of the types that are named, what the tests judge; without any, all there is."""
    dtypes = tuple(getattr(torch, name) for name in sys.argv[1:])
    print(json.dumps([row._asdict() for row in table(dtypes or DTYPES, not dtypes)]))


if __name__ == "__main__":
    main()
