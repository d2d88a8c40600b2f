"""`--dry-run`: which part of the images is tried, and what the whole run would take, judged by that part."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from reid_fast.clock import Clock
from reid_fast.config import Config
from reid_fast.console import Console, clock_time
from reid_fast.data.cache import only_read
from reid_fast.data.images import Held, ImageStream
from reid_fast.data.sets import ImageSet, ReidSet, TrainingSet
from reid_fast.data.synthetic import is_drawn
from reid_fast.device import pick_device
from reid_fast.epoch import cluster_images, fill, score, test_images, train_epoch
from reid_fast.errors import UserError
from reid_fast.labels.company import in_company
from reid_fast.labels.neighbours import find_neighbours
from reid_fast.memories import VaryingBuffers
from reid_fast.methods import Method
from reid_fast.metrics import have_matches
from reid_fast.metrics_log import is_due
from reid_fast.ranks import ALONE, Ranks
from reid_fast.run import Position, Run, build, open_data, save, together

STEPS = 2
_QUERIES = 32
_SEARCHED = 4096
_STAGES = "decode", "extract", "knn", "jaccard", "dbscan", "silhouette", "memory", "train", "evaluate"


def rehearse(config: Config, ranks: Ranks = ALONE) -> Rehearsed:
    """Do a little of all that `train` does, say what the whole run would take, and leave nothing behind.

    Args:
        config, ranks: as `train` takes them.
    """
    device = pick_device(config.device, ranks.local_rank)
    with together(config, ranks) as stop, nothing_left(config, ranks) as little:
        opened = ranks.from_first(lambda: open_data(little, Console(quiet=not ranks.first)))
        part, held = part_of(*opened, config), held_whole(opened[1], config, device, ranks)
        run = build(little if held else replace(little, cache=0.0), ranks, stop, part)
        with run.checkpoints, run.metrics:
            # The first epoch warms up; in the last one, some methods do more.
            for epoch in (0, config.epochs - 1):
                run.at = Position(epoch)
                run.at.labels = torch.from_numpy(label_part(run))
                train_epoch(run)
            save(run)
        clock = Clock(device, {name: seconds for name, seconds in run.at.seconds.items() if name != "knn"})
        rows = rows_to_search(opened[1], run.method.model.width, device)
        find_neighbours(rows, run.method.neighbours, clock, search=config.knn, say=run.console.say, ranks=ranks)
        if part[0].query is not None and part[0].gallery is not None:
            test_images(run, part[0].query, part[0].gallery)  # decoded once, not at each evaluation
        with clock.stage("evaluate"):
            for encoder in (run.method.model, *run.method.others.values()):
                score(run, encoder)
        timed = Clock(device)
        with timed.stage("decode"):
            decode(run)
        decoding = timed["decode"] / len(run.loader.paths)
        scored = sum(len(split) for split in (part[0].query, part[0].gallery) if split is not None)
        found = Rehearsed(config, *opened, part[1], held, dict(clock), decoding, scored, len(rows))
        run.console.say(table(found))
        run.console.say(f"all training {held}")
        run.console.say(f"about {found.memory(run.method, device):.1f} GiB of memory on {device}, at most")
        run.console.say("dry run: every stage works on a part of the images, and nothing is left behind")
        return found


def decode(run: Run) -> None:
    """Decode the training images once more."""
    config, paths = run.config, run.loader.paths
    stream = ImageStream(
        paths, config.size, batch_size=config.batch_size, device=run.device, threads=config.workers, norm=None
    )
    for _ in stream.plain(np.arange(len(paths)), config.batch_size):
        pass


def label_part(run: Run) -> np.ndarray:
    """`label_images` of a rehearsal: with labels made up, where too few images form clusters to fill a batch."""
    clock = Clock(run.device)
    features, found = cluster_images(run, clock)
    try:
        return planned(run, features, found, clock)
    except UserError:
        run.console.say("too few of the images that are tried form clusters to fill a batch: their labels are made up")
        return planned(run, features, made_up_labels(len(found), run.config), clock)


def planned(run: Run, features: Tensor, labels: np.ndarray, clock: Clock) -> np.ndarray:
    """The labels, if batches can be made of them; the memory is filled by them."""
    if not in_company(labels).any():
        raise UserError("no image shares its label")
    fill(run, features, labels, Clock(run.device, clock))
    run.method.plan_epoch(labels, run.at.epoch)
    return labels


@contextmanager
def nothing_left(config: Config, ranks: Ranks) -> Iterator[Config]:
    """Inside, the settings write to a folder that is gone afterwards, and what lies in caches is only read."""
    scratch = TemporaryDirectory(prefix="reid-fast-dry-run-") if ranks.first else None
    try:
        folder = Path(ranks.from_first(lambda: scratch.name if scratch else ""))
        quiet = replace(
            config,
            logs_dir=folder / "run",
            cache_dir=None,
            iters=STEPS,
            resume=False,
            tensorboard=False,
            wandb=None,
            save_best=False,
            patience=0,
        )
        if config.dataset == "synthetic" and not is_drawn(config.data_dir):
            quiet = replace(quiet, data_dir=folder)
        with only_read():
            yield quiet
    finally:
        if scratch:
            scratch.cleanup()


def part_of(data: ReidSet, images: TrainingSet, config: Config) -> tuple[ReidSet, TrainingSet]:
    """The images that are tried: two batches of each kind, and queries whose match is in the gallery.

    They are the first ones by name, for names often go by person or by time, and neighbours in time form clusters.
    """
    count = 2 * config.batch_size
    train, source = _first(images.target, count), images.source
    if source is not None:
        source = _first(source, max(count, 2 * _until(source.pids, config.batch_size // config.num_instances)))
        source = ImageSet(source.paths, np.unique(source.pids, return_inverse=True)[1], source.cams)
    query, gallery = data.query, data.gallery
    if query is not None and gallery is not None:
        found = have_matches(query.pids, query.cams, gallery.pids, gallery.cams)
        query = query.select(np.flatnonzero(found)[:_QUERIES])
        gallery = gallery.select(np.flatnonzero(np.isin(gallery.pids, query.pids))[: 8 * _QUERIES])
    return replace(data, train=train, query=query, gallery=gallery), TrainingSet(train, source)


def made_up_labels(count: int, config: Config) -> np.ndarray:
    """[count] int64: labels that fill batches, for images of which too few form clusters."""
    return np.arange(count) // config.num_instances


def rows_to_search(images: TrainingSet, width: int, device: torch.device) -> Tensor:
    """[n, D] unit rows as many as time a search well: the part that is tried is too small for that."""
    return F.normalize(torch.randn(min(len(images.target), _SEARCHED), width, device=device))


def held_whole(images: TrainingSet, config: Config, device: torch.device, ranks: Ranks) -> Held:
    """Where the images of the whole run would be held."""
    count = len(images.images)
    return Held.judge(count, config.size, config.cache, device, folder=config.cache_dir, ranks=ranks.local_size)


@dataclass(frozen=True)
class Rehearsed:
    """What was tried, and how long it took.

    Attributes:
        config: of the whole run.
        data, images: all of them.
        part: of the training images, that were tried.
        held: where all of them would be held.
        seconds: of the stages of an epoch of two steps, and "evaluate".
        decoding: seconds to decode an image.
        scored: images that were evaluated.
        searched: rows that "knn" was timed with; their number squared decides how long it takes.
    """

    config: Config
    data: ReidSet
    images: TrainingSet
    part: TrainingSet
    held: Held
    seconds: Mapping[str, float]
    decoding: float
    scored: int
    searched: int

    @property
    def larger(self) -> float:
        """How many times the images that were tried the whole set is."""
        return len(self.images.target) / len(self.part.target)

    @property
    def steps(self) -> int:
        """Of an epoch; where they follow from the images in clusters, as many as there could be."""
        return self.config.iters or max(1, len(self.images.target) // self.config.batch_size)

    def stages(self) -> dict[str, float]:
        """Seconds that each stage takes in the whole run."""
        config, test = self.config, [split for split in (self.data.query, self.data.gallery) if split is not None]
        times = {"decode": self.decoding * (len(self.images.images) if self.held else 0)}
        for stage, seconds in self.seconds.items():
            if stage == "train":
                times[stage] = config.epochs * self.steps * seconds / STEPS
            elif stage == "knn":
                growth = 2 if config.knn == "exact" else 1.5
                times[stage] = config.epochs * seconds * (len(self.images.target) / self.searched) ** growth
            elif stage != "evaluate":
                times[stage] = config.epochs * seconds * self.larger
        if self.scored:
            due = sum(is_due(epoch, config.epochs, config.eval_step) for epoch in range(config.epochs + 1))
            count = sum(map(len, test))
            times["evaluate"] = due * self.seconds["evaluate"] * count / self.scored
            times["decode"] += self.decoding * (count if self.held else 0)
        return {stage: times[stage] for stage in _STAGES if stage in times}

    def memory(self, method: Method, device: torch.device) -> float:
        """GiB that the process, or on CUDA the device, would hold at most: what it held, and what grows."""
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        kept = [m.buffers(recurse=False) for m in method.modules() if isinstance(m, VaryingBuffers)]
        grows = sum(buffer.nbytes for buffers in kept for buffer in buffers)
        grows += 4 * method.model.width * len(self.part.target)  # features
        tried = 3 * math.prod(self.config.size) * len(self.part.images) / 2**30
        whole = 0.0 if self.held.tier == "host" else self.held.in_memory
        return peak / 1024 + (self.larger - 1) * grows / 2**30 + max(0.0, whole - tried)


def table(rehearsed: Rehearsed) -> Table:
    """The stages, what was measured and what the whole run would take."""
    times = rehearsed.stages()
    shown = Table(title="estimates for the whole run")
    for title in ("stage", "tried, s", "whole run"):
        shown.add_column(title, justify="left" if title == "stage" else "right")
    for stage, seconds in times.items():
        tried = rehearsed.seconds.get(stage)
        shown.add_row(stage, "" if tried is None else f"{tried:.2f}", clock_time(seconds))
    shown.add_row("all", "", clock_time(sum(times.values())))
    return shown


def _first(images: ImageSet, count: int) -> ImageSet:
    return images.select(np.arange(min(count, len(images))))


def _until(pids: np.ndarray, identities: int) -> int:
    """How many images have so many identities."""
    firsts = np.sort(np.unique(pids, return_index=True)[1])
    return int(firsts[identities - 1]) + 1 if identities <= len(firsts) else len(pids)
