"""Runs of several ranks for the tests: in processes of their own, or as a command with a fault at a chosen step."""

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
SLOW = ["ranks.runs", "nvidia.dali.fn", "scipy", "sklearn.metrics", "torch._dynamo"]
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
    multiprocessing.set_forkserver_preload(SLOW)
    mp.start_processes(work, arguments, size, start_method="forkserver")


def train_together(size, folder, jobs):
    """Let `size` processes do the jobs: name -> what each rank saw."""
    start_together(work, size, size, folder, jobs)
    return {job[0]: [torch.load(folder / f"{job[0]}-{rank}.pt") for rank in range(size)] for job in jobs}


def command_together(size, folder, run, *arguments):
    """Let `size` ranks run a command as torchrun starts them: their exit codes, what they print, what they complain.

    torchrun starts interpreters, each of which imports all there is; these are forked, and the test keeps their store.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = [fork(as_rank, rank, size, store.port, folder, run, arguments) for rank in range(size)]
    for process in processes:
        process.join(300)
    said = ("".join((folder / f"{rank}.{name}").read_text() for rank in range(size)) for name in ("out", "err"))
    return [process.exitcode for process in processes], *said


def fork(work, *arguments):
    """A process that does the work, started."""
    multiprocessing.set_forkserver_preload(SLOW)
    process = multiprocessing.get_context("forkserver").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def as_rank(rank, size, port, folder, run, arguments):
    """One rank's process, with torchrun's environment."""
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in named.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
    run(*arguments)


def with_fault(fault, flags=None):
    """The command of training, one rank of which gets a signal behind a step: fault="rank step signal attempt"."""
    rank, at, number, attempt = map(int, fault.split())
    step, taken = epoch.train_step, count(1)
    this = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    note(this)

    def train_step(run, batch):
        loss = step(run, batch)
        hit = run.ranks.rank == rank and next(taken) == at
        if hit and this == attempt:
            note("fault")
            os.kill(os.getpid(), number)
        return loss

    epoch.train_step = train_step
    driver.main(flags)


def note(what):
    """Append what happens, and when, to the file TIMES."""
    if "TIMES" in os.environ:
        with open(os.environ["TIMES"], "a") as file:
            file.write(f"{what} {time.monotonic()}\n")


if __name__ == "__main__":
    with_fault(os.environ["FAULT"])
