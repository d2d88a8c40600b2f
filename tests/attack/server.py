"""A process that has imported everything, and runs commands in forks of itself: with a fault, or for a time.

A request and its answer are lines of JSON on stdin and stdout. `faults.c` is preloaded into it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback

# See tests/conftest.py: a process of its own has to choose too.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch

import reid_fast
from reid_fast.__main__ import main
from reid_fast.command_line import parse
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.models.archs import ARCHS
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch

LATE = (
    "nvidia.dali",
    "scipy.sparse.csgraph",
    "sklearn.cluster",
    "sklearn.metrics",
    "faiss",
    "torch._inductor",
    "onnx",
    "onnxscript",
    "tensorboard",
)
SKIPPED = "reid_fast.kernels", "reid_fast._C"  # what needs a GPU

ARCHS["tiny"] = ResNetArch(BasicBlock, (1, 1, 1, 1), width=8)
synthetic_folder.__kwdefaults__ |= {"train_ids": 2, "test_ids": 1, "workers": 1}
SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])


def import_everything() -> None:
    """What a command imports late, too: a fork has it at once."""
    for module in pkgutil.walk_packages(reid_fast.__path__, "reid_fast."):
        if not module.name.startswith(SKIPPED) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    parse(["--method", "cc"])


def work(request: dict) -> None:
    """Be the command, to its end."""
    for name in ("out", "err"):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, {"out": 1, "err": 2}[name])
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ |= request["environment"]
    os.chdir(request["folder"])
    torch.set_num_threads(1)
    journal = os.open(request["journal"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    folders = [os.fsencode(folder) for folder in request["watched"]]
    SHIM.arm(*folders, request["kind"].encode(), ctypes.c_long(request["n"]), journal)
    code: object = 0
    try:
        main(request["argv"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def serve(request: dict) -> dict:
    """Let a fork do it, and end it when its time is over."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            work(request)
        finally:
            os._exit(70)
    ended, status, signalled = 0, 0, False
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - start
        if not ended:
            time.sleep(0.002)
            if not signalled and passed > request["seconds"]:
                os.kill(child, signal.SIGKILL)
                signalled = True
    return {"code": os.waitstatus_to_exitcode(status), "seconds": passed, "in_time": not signalled}


if __name__ == "__main__":
    import_everything()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
