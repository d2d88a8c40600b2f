"""The step of several processes beside that of one: how much faster, and how much of it is what they exchange."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from epoch import opened
from report import Lap, Row, lap, summed_up

from reid_fast.device import emulates_bfloat16, pick_device, threads
from reid_fast.epoch import train_epoch
from reid_fast.ranks import Ranks
from reid_fast.run import Position, Run

# By flags: the steps of an epoch. BatchNorm groups of 16 images, so that four processes have one each.
SMALL = ("--recipe", "small", "--batch-size", "16", "--bn-group", "4", "--num-instances", "2")
CASES = {
    ("--recipe", "small"): 20,
    ("--recipe", "small", "--amp"): 20,
    ("--arch", "resnet18", "--height", "128", "--width", "64", "--batch-size", "64", "--bn-group", "16"): 4,
    ("--arch", "resnet18", "--height", "128", "--width", "64", "--batch-size", "64", "--bn-group", "16", "--amp"): 6,
}
COMMON = ("--weights", "none", "--num-instances", "4")
EXCHANGES = 20  # of a buffer as large as the gradient


class Crew(NamedTuple):
    """Who takes a step."""

    ranks: int
    threads: int  # of each

    def __str__(self) -> str:
        processes = "1 process" if self.ranks == 1 else f"{self.ranks} processes"
        return f"{processes} of {self.threads} thread{'s' if self.threads > 1 else ''}"


class Seen(NamedTuple):
    """What the first process has seen."""

    laps: list[Lap]  # a step each
    exchange: float  # seconds of an all-reduce of the gradient alone
    parameters: int
    config: Row
    width: int  # of a feature


def scaling(smoke: bool, folders: Sequence[Path]) -> list[Row]:
    """A row for each network and each crew, on the first folder's set or the synthetic one."""
    folder, rounds = folders[0] if folders else None, 1 if smoke else 2
    rows = []
    for flags, steps in ({SMALL: 2} if smoke else CASES).items():
        if "--amp" in flags and emulates_bfloat16(pick_device("auto")):  # then it is the row before it
            continue
        seen: dict[Crew, list[Seen]] = {crew: [] for crew in crews(smoke)}
        for _ in range(rounds):  # in turn, so that a machine that slows down does so for all
            for crew, found in seen.items():
                found.append(_together(crew, folder, (*COMMON, *flags, "--iters", str(steps))))
        rows += [_row(crew, found, seen) for crew, found in seen.items()]
    return rows


def crews(smoke: bool) -> list[Crew]:
    """One process and one thread; then all cores, as threads of one process and as processes, two and four."""
    cores = len(os.sched_getaffinity(0))
    many = [Crew(ranks, max(1, cores // ranks)) for ranks in (2, 4) if ranks <= max(2, cores)]
    return [Crew(1, 1), *many[:1]] if smoke else [Crew(1, 1), Crew(1, cores), *many]


def _row(crew: Crew, found: list[Seen], seen: dict[Crew, list[Seen]]) -> Row:
    alone = Crew(1, 1)
    ours, beside = (summed_up([lap for one in laps for lap in one.laps]) for laps in (found, seen[alone]))
    about = found[0]
    B = int(about.config["B"])
    row: Row = {"stage": f"scaling, {crew}", **about.config, "ranks": crew.ranks, "threads": crew.threads, "ours": ours}
    if crew != alone:
        row |= {"beside": beside, "beside_is": str(alone)}
    row |= {"images_per_second": round(B / ours["seconds"], 1)}
    row |= {"efficiency": round(beside["seconds"] / ours["seconds"] / (crew.ranks * crew.threads), 2)}
    if crew.ranks > 1:
        exchange = statistics.median(one.exchange for one in found)
        row |= {
            # What a process sends in a step: parts of the gradient twice round the ring, its features to the others.
            "gradient_bytes": round(2 * (crew.ranks - 1) / crew.ranks * 4 * about.parameters),
            "feature_bytes": round((crew.ranks - 1) / crew.ranks * 4 * B * about.width),
            # The bound: what the gradient takes by itself, were none of it hidden behind the backward pass.
            "exchange_seconds": round(exchange, 5),
            "exchange_share": round(exchange / ours["seconds"], 3),
        }
    return row


def _together(crew: Crew, folder: Path | None, flags: tuple[str, ...]) -> Seen:
    """Let a crew train a few epochs; what its first process has seen."""
    with tempfile.TemporaryDirectory() as shared:
        mp.spawn(_work, (crew, folder, flags, Path(shared)), crew.ranks)
        return torch.load(Path(shared) / "seen.pt", weights_only=False)


def _work(rank: int, crew: Crew, folder: Path | None, flags: tuple[str, ...], shared: Path) -> None:
    several = crew.ranks > 1
    store = dist.FileStore(str(shared / "store"), crew.ranks) if several else None
    ranks = Ranks(rank, crew.ranks, rank, crew.ranks, store)
    with ranks.connected(pick_device("auto", rank)), threads(crew.threads), opened(folder, *flags, ranks=ranks) as run:
        torch.set_num_threads(crew.threads)  # whatever the recipe says
        seen = _measure(run)
        if ranks.first:
            torch.save(seen, shared / "seen.pt")


def _measure(run: Run) -> Seen:
    labels = run.data.train.pids  # clusters as good as they get
    features = torch.randn(len(labels), run.method.model.width, generator=torch.Generator().manual_seed(0))
    run.method.fill_memory(F.normalize(features).to(run.device), labels)
    steps = run.config.iters

    def epoch() -> None:
        run.at = Position(labels=torch.from_numpy(labels))
        train_epoch(run)

    epoch()
    laps = [lap(epoch)[1] / steps for _ in range(3)]
    parameters = sum(weight.numel() for weight in run.method.parameters() if weight.requires_grad)
    config = {"arch": run.config.arch, "size": run.config.size, "B": run.config.batch_size, "amp": str(run.amp)}
    return Seen(laps, _exchange(run, parameters), parameters, config, run.method.model.width)


def _exchange(run: Run, parameters: int) -> float:
    """Seconds of an all-reduce of as many float32 numbers as the gradient has, alone."""
    if run.ranks.group is None:
        return 0.0
    buffer = torch.zeros(parameters, device=run.device)
    laps = [lap(lambda: dist.all_reduce(buffer, group=run.ranks.group))[1].seconds for _ in range(EXCHANGES)]
    return statistics.median(laps)
