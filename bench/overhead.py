"""What the engine adds to its network: an epoch of its own loop beside forward, backward and optimiser alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from epoch import opened
from report import Row, interleaved, lap

from reid_fast.data.images import Batch
from reid_fast.device import emulates_bfloat16, pick_device
from reid_fast.epoch import train_epoch
from reid_fast.run import Position, Run

SMALL = ("--arch", "resnet18_half", "--height", "64", "--width", "32", "--batch-size", "16", "--bn-group", "16")
RESNET18 = ("--arch", "resnet18", "--height", "128", "--width", "64", "--batch-size", "64", "--bn-group", "64")
RESNET50 = ("--arch", "resnet50", "--height", "256", "--width", "128", "--batch-size", "32", "--bn-group", "32")
COMMON = ("--weights", "none", "--num-instances", "4", "--threads", "0", "--pooling-type", "avg")
AMP, GEM = ("--amp",), ("--amp", "--pooling-type", "gem")
# By flags: the steps of an epoch, and how many epochs.
CASES = {RESNET18: (3, 7), RESNET18 + AMP: (4, 7), RESNET18 + GEM: (4, 7), RESNET50: (3, 7), RESNET50 + AMP: (3, 7)}


def overhead(smoke: bool, folders: Sequence[Path]) -> list[Row]:
    """A row for each network and precision, on the first folder's set or the synthetic one."""
    folder = folders[0] if folders else None
    rows = []
    for flags, (steps, runs) in ({SMALL: (3, 1)} if smoke else CASES).items():
        if "--amp" in flags and emulates_bfloat16(pick_device("auto")):  # then it is the row before it
            continue
        with opened(folder, *COMMON, *flags, "--iters", str(steps)) as run:
            rows.append(_row(run, runs))
    return rows


def _row(run: Run, runs: int) -> Row:
    labels = run.data.train.pids  # clusters as good as they get
    features = torch.randn(len(labels), run.method.model.width, device=run.device)
    run.method.fill_memory(F.normalize(features), labels)
    plan = run.method.plan_epoch(labels, 0)
    run.method.train()
    batch = next(iter(run.loader.batches(plan[:1], labels, epoch=0)))

    def engine() -> None:
        run.at = Position(labels=torch.from_numpy(labels))
        train_epoch(run)

    def loader() -> None:
        for _ in run.loader.batches(plan, labels, epoch=0):
            pass

    def repeated(step: Callable[[], None]) -> Callable[[], None]:
        return lambda: [step() for _ in plan] and None

    works = engine, repeated(_bare(run, batch)), loader, repeated(_head(run, batch))
    sides = [lambda work=work: lap(work)[1] / len(plan) for work in works]
    interleaved(sides, 1)
    ours, beside, images, behind = interleaved(sides, runs)
    config = run.config
    about = {"arch": config.arch, "size": config.size, "B": config.batch_size, "amp": str(run.amp)}
    about |= {"pooling": config.pooling_type}
    return {
        "stage": "step over bare backbone",
        **about,
        "threads": torch.get_num_threads(),
        "steps": len(plan),
        "ours": ours,
        "beside": beside,
        "beside_is": "bare backbone",
        "overhead_per_cent": {clock: _per_cent(ours[clock], beside[clock]) for clock in ("seconds", "processor")},
        # Of what the engine adds: the images, which a second thread makes, and what stands behind the feature map.
        "loader": images,
        "behind_backbone": behind,
    }


def _per_cent(value: float, of: float) -> float:
    return round(100 * (value / of - 1), 2)


def _bare(run: Run, batch: Batch) -> Callable[[], None]:
    """Forward, backward and the engine's optimiser on images that are there."""

    def step() -> None:
        with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
            loss = run.method.model.backbone(batch.views[0]).float().mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()

    return step


def _head(run: Run, batch: Batch) -> Callable[[], None]:
    """Pooling, neck and memory, forward and backward, on a feature map that is there."""
    encoder = run.method.model
    with torch.no_grad(), torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
        features = encoder.backbone(batch.views[0])

    def step() -> None:
        x = F.normalize(encoder.necked(encoder.pool(features.detach().requires_grad_())))
        run.method.contrast(x, batch)["contrast"].backward()

    return step
