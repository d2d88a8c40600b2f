"""Cluster, then train, epoch after epoch: `python -m reid_fast.train --method cc --amp`.

With several ranks (`torchrun -m reid_fast.train`) all of them run this, each on its part of the images. What they have
to say, to log and to save, the first one does for all.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from reid_fast import run_folder
from reid_fast.clock import Clock
from reid_fast.command_line import flags, parse
from reid_fast.config import Config, to_json
from reid_fast.epoch import cluster_images, label_images, score, train_epoch
from reid_fast.evaluate import describe, load_encoder
from reid_fast.labels.company import in_company
from reid_fast.metrics import label_scores
from reid_fast.metrics_log import epoch_line, is_due, score_key, summary
from reid_fast.models.norm import target_state
from reid_fast.ranks import ALONE, Ranks, command
from reid_fast.rehearsal import rehearse
from reid_fast.run import Run, build, save, together

BEST = "best"  # of the run folder: what `--save-best` keeps, as `evaluate` takes it


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, 2 with one sentence on bad input, 143 where SIGTERM has asked it to end."""
    with command() as ranks:
        config, origin = parse(argv)
        if not config.show_config:
            (rehearse if config.dry_run else train)(config, ranks)
        elif ranks.first:
            for name, value in to_json(config).items():
                print(f"{name:<16} {value!s:<24} {origin[name]}")


def train(config: Config, ranks: Ranks = ALONE) -> Path:
    """Train from the start, or from the last checkpoint on, and return the run folder.

    Args:
        config: the run's settings.
        ranks: the processes that train together, all of which call this.
    """
    with together(config, ranks) as stop, ExitStack() as held:
        run = build(config, ranks, stop, held=held)
        go_through_epochs(run)
        return run.folder


def go_through_epochs(run: Run) -> None:
    """Evaluate the untrained network, then cluster and train until all epochs are done."""
    config = run.config
    with run.checkpoints, run.metrics:
        if run.at.epoch == run.at.step == 0:
            finish_epoch(run, {"epoch": 0, "seconds": {}})  # the scores of the untrained network
        while run.at.epoch < config.epochs:
            if run.at.step == 0:
                run.at.labels = torch.from_numpy(label_images(run))
                judge(run)
                if is_out_of_patience(run):
                    break
            train_epoch(run)
            row = epoch_row(run)
            run.at = run.at.next_epoch()
            finish_epoch(run, row)
            if run.ranks.first:
                run_folder.export(run.folder, target_state(run.method.model), describe(config))
            save(run)
            run.checkpoints.wait()
        else:  # out of epochs, not of patience
            judge_last(run)
    summarise(run)


def judge(run: Run) -> None:
    """Keep the encoder as `--save-best` has it, if its clusters lie further apart than those of all epochs before.

    Called with the labels that the encoder has just given: they judge the epoch before. Ranks agree, for `run.at` is
    the same on all; a resumed run comes to the same end, for it is in its checkpoint.
    """
    at, config = run.at, run.config
    if not chooses(config) or at.epoch == 0 or at.silhouette <= at.best_silhouette:
        return
    at.best_epoch, at.best_silhouette = at.epoch, at.silhouette
    if run.ranks.first:
        description = describe(config) | {"epoch": at.epoch, "silhouette": at.silhouette}
        run_folder.export(run.folder / BEST, target_state(run.method.model), description)


def judge_last(run: Run) -> None:
    """Judge the last epoch too: with labels that nothing is trained with."""
    if chooses(run.config) and run.at.epoch:
        cluster_images(run, Clock(run.device))
        judge(run)


def chooses(config: Config) -> bool:
    """Whether the run keeps the encoder of its best epoch."""
    return config.save_best or config.patience > 0


def is_out_of_patience(run: Run) -> bool:
    """Whether the run is to end, since its clusters have not come to lie further apart for `--patience` epochs."""
    at, patience = run.at, run.config.patience
    if not patience or at.epoch - at.best_epoch < patience or not at.best_epoch:
        return False
    run.console.say(
        f"the silhouette has been largest behind epoch {at.best_epoch}, {at.best_silhouette:.3f}: "
        f"after {at.epoch - at.best_epoch} epochs --patience ends the run"
    )
    return True


def epoch_row(run: Run) -> dict[str, Any]:
    """What metrics.jsonl says of the epoch that has just been trained, without scores."""
    config, at, labels = run.config, run.at, run.at.epoch_labels
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if run.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.device) / 2**20
    return {
        "epoch": at.epoch + 1,
        "clusters": len(np.unique(labels[in_company(labels)])),
        "outliers": int((~in_company(labels)).sum()),
        "silhouette": at.silhouette,
        "loss": at.loss / at.step,
        "lr": run.method.lr(at.epoch),
        **label_scores(labels, run.data.train.pids),
        "seconds": at.seconds,
        "images_per_second": at.step * config.batch_size * run.loader.images.domains / at.seconds["train"],
        "peak_memory_mb": peak,
    }


def finish_epoch(run: Run, row: dict[str, Any]) -> None:
    """Evaluate if it is due, and record the epoch."""
    config = run.config
    if is_due(row["epoch"], config.epochs, config.eval_step):
        clock = Clock(run.device, row["seconds"])
        with clock.stage("evaluate"):
            for prefix, encoder in {"": run.method.model, **run.method.others}.items():
                scores = score(run, encoder)
                row |= {score_key(prefix, name): value for name, value in scores.items()}
        row |= {"seconds": dict(clock)} if "mAP" in row else {}
    run.metrics.add(row)
    line = epoch_line(row, config.epochs, run.metrics.seconds_left(config.epochs, config.eval_step))
    if line is not None:  # an untrained network that is not evaluated has nothing to tell
        run.console.say(line)


def summarise(run: Run) -> None:
    """Print the scores before training, at the end, and of the best epoch, for each encoder that is evaluated."""
    table = summary(run.metrics.rows(), ("", *run.method.others), chosen(run))
    if table is not None:
        run.console.say(table)
    run.console.say(f"model and metrics are in {run.folder}")


def chosen(run: Run) -> dict[str, dict[str, float]]:
    """The scores of what `--save-best` has kept, by a name for it; nothing without test images."""
    if not run.at.best_epoch:
        return {}
    encoder, _ = run.ranks.from_first(lambda: load_encoder(run.folder / BEST))
    encoder.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
    scores = score(run, encoder)
    return {f"best silhouette (epoch {run.at.best_epoch})": scores} if scores else {}


def train_with(**settings: Any) -> Path:
    """Train with settings by name, as the command line has them, and return the run folder.

    Also callable as `reid_fast.train(...)`: `train(method="cc", dataset="synthetic", epochs=1)`.

    Args:
        settings: `batch_size=64` is `--batch-size 64`; what is not given has the value that the command line gives it.

    Raises:
        UserError: as the command line says it.
    """
    config, _ = parse(flags(settings))
    return train(config, Ranks.from_environment())


class _Callable(ModuleType):
    """This module, so that `from reid_fast import train` is a function and `import reid_fast.train` stays a module."""

    def __call__(self, **settings: Any) -> Path:
        return train_with(**settings)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    main()
