"""Runs of several ranks for the tests: in processes of their own, or by torchrun with a fault at a chosen step."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))
# See conftest.py: a process of its own has to choose too.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

from inputs import TINY

from reid_fast import epoch
from reid_fast import train as driver
from reid_fast.errors import Stopped
from reid_fast.models.archs import ARCHS
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
from reid_fast.models.archs.vit import ViTArch
from reid_fast.ranks import ALONE, Ranks

# Three BatchNorm groups of eight: one a rank, or two and one.
SMALL = TINY | {"arch": "tiny", "batch_size": 24, "bn_group": 8, "iters": 10, "epochs": 1, "workers": 1, "threads": 1}
# What a run imports on its way; torch's optimisers import its compiler.
SLOW = ["nvidia.dali.fn", "scipy", "sklearn.metrics", "torch._dynamo"]
ARCHS.setdefault("tiny", ResNetArch(BasicBlock, (1, 1, 1, 1), width=8))
ARCHS.setdefault("tiny_vit", ViTArch(16, depth=2, heads=2))


class Trained:
    """What one rank saw of a run: the loss of each step, the parameters before them, and all state at its end."""

    def __init__(self):
        self.losses, self.start, self.end = [], {}, {}


@contextmanager
def watched(seen, stop_at=None):
    """Note down what a run does; raise SIGTERM behind one of its steps."""
    step, save = epoch.train_step, driver.save

    def train_step(run, batch):
        if not seen.start:
            seen.start = {name: value.clone() for name, value in run.method.named_parameters()}
        loss = step(run, batch)
        seen.losses.append(loss.item())
        if len(seen.losses) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def saved(run):
        seen.end = {name: value.clone() for name, value in run.method.state_dict().items()}
        save(run)

    epoch.train_step, epoch.save, driver.save = train_step, saved, saved
    try:
        yield
    finally:
        epoch.train_step, epoch.save, driver.save = step, save, save


def train(config, ranks, stop_at=None):
    """Train as the command does; a run that was stopped has left what it saw."""
    seen = Trained()
    with watched(seen, stop_at):
        try:
            driver.train(config, ranks)
        except Stopped:
            if ranks.group is not None:
                dist.destroy_process_group()
    return seen


def work(rank, size, folder, jobs):
    """One rank's process: it trains for each job (name, config, the rank that SIGTERM reaches, behind which step)."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store of {jobs[0][0]}"), size) if size > 1 else None
    for name, config, stopped, stop_at in jobs:
        ranks = Ranks(rank, size, rank, size, dist.PrefixStore(name, store)) if size > 1 else ALONE
        torch.save(vars(train(config, ranks, stop_at if rank == stopped else None)), folder / f"{name}-{rank}.pt")


def start_together(work, size, *arguments):
    """Call work(rank, *arguments) in `size` processes, forked from one that has imported what takes seconds."""
    multiprocessing.set_forkserver_preload(["ranks.runs", *SLOW])
    mp.start_processes(work, arguments, size, start_method="forkserver")


def train_together(size, folder, jobs):
    """Let `size` processes do the jobs: name -> what each rank saw."""
    start_together(work, size, size, folder, jobs)
    return {job[0]: [torch.load(folder / f"{job[0]}-{rank}.pt") for rank in range(size)] for job in jobs}


def with_fault():
    """The command of training, one rank of which gets a signal behind a step: FAULT="rank step signal attempt"."""
    rank, at, number, attempt = map(int, os.environ["FAULT"].split())
    step, taken = epoch.train_step, count(1)
    note(os.environ["TORCHELASTIC_RESTART_COUNT"])

    def train_step(run, batch):
        loss = step(run, batch)
        hit = run.ranks.rank == rank and next(taken) == at
        if hit and os.environ["TORCHELASTIC_RESTART_COUNT"] == str(attempt):
            note("fault")
            os.kill(os.getpid(), number)
        return loss

    epoch.train_step = train_step
    driver.main()


def note(what):
    """Append what happens, and when, to the file TIMES."""
    if "TIMES" in os.environ:
        with open(os.environ["TIMES"], "a") as file:
            file.write(f"{what} {time.monotonic()}\n")


if __name__ == "__main__":
    with_fault()
