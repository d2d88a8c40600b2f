"""Cluster, then train, epoch after epoch: `python -m reid_fast.train --method cc --amp`."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid_fast import checkpoint, run_folder
from reid_fast.clock import Clock
from reid_fast.config import Config, parse, to_json
from reid_fast.console import Console
from reid_fast.data.images.augmentation import Augmentation, draw
from reid_fast.data.images.batch import Batch
from reid_fast.data.images.dali import ImageStream
from reid_fast.data.images.store import ImageStore, decoded
from reid_fast.data.open import open_set
from reid_fast.data.sets.records import ImageSet, ReidSet
from reid_fast.device import amp_dtype, choose_kernels, pick_device, require_one_process
from reid_fast.errors import UserError, exit_on_user_error
from reid_fast.evaluate import describe, score_encoder
from reid_fast.labels.extract import extract
from reid_fast.methods import Method, method_class, method_names
from reid_fast.metrics import check_evaluable, label_scores
from reid_fast.metrics_log import SCORES, MetricsLog, epoch_line, read_metrics, score_key, score_table
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import target_state

FORMAT = 1
CHECK_STEPS = {"cpu": 1, "cuda": 20}  # steps between looks at the loss: on CUDA a look waits for the GPU
Pictures = ImageStream | ImageStore


@dataclass
class Position:
    """Where a run stands; saved with it."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way; 0: it has no labels yet
    steps_before: int = 0  # of the finished epochs
    labels: Tensor | None = None  # [N] int64, of the epoch under way
    loss: float = 0.0  # summed over its steps
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


@dataclass
class Run:
    """The parts of a run."""

    config: Config
    folder: Path
    console: Console
    metrics: MetricsLog
    device: torch.device
    amp: torch.dtype | None
    data: ReidSet
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plain: Pictures  # resized pictures, to extract features from
    training: Pictures  # augmented views, the source's pictures behind the training pictures
    source: Pictures | None  # resized pictures of the source
    at: Position


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        config, origin = parse(argv, method_names(), method_settings)
        if config.show_config:
            for name, value in to_json(config).items():
                print(f"{name:<16} {value!s:<24} {origin[name]}")
        else:
            train(config)


def train(config: Config) -> Path:
    """Train from the start, or from the last checkpoint on, and return the run folder."""
    run = build(config)
    at = run.at
    if at.epoch == at.step == 0:
        finish_epoch(run, {"epoch": 0, "seconds": {}})  # the scores of the untrained network
    while at.epoch < config.epochs:
        if at.step == 0:
            at.labels = torch.from_numpy(label_pictures(run))
        train_epoch(run)
        row = epoch_row(run)
        run.at = at = Position(at.epoch + 1, steps_before=at.steps_before + at.step)
        finish_epoch(run, row)
        checkpoint.export(run.folder, target_state(run.method.model), describe(config))
        save(run)
    summarise(run)
    return run.folder


def build(config: Config) -> Run:
    """Open the data and put the parts together; with `--resume`, as they were at the last checkpoint."""
    require_one_process()
    torch.manual_seed(config.seed)
    choose_kernels(config.deterministic)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    amp = amp_dtype(device, config.amp, config.width)
    data = open_set(config.dataset, config.data_dir, config.pattern, config.skip_bad_images, config.workers, Console())
    if data.query is not None:
        check_evaluable(data.query.pids, data.query.cams, data.gallery.pids, data.gallery.cams)
    source = open_source(config, data.train) if config.source else None
    method = method_class(config.method)(config, data.train, source)
    method.to(device, memory_format=torch.channels_last)
    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)

    path = run_folder.choose(config)
    at, last_epoch = Position(), -1
    if config.resume and (path / "last.pt").exists():
        state = checkpoint.load(path)
        run_folder.check_same(state, config, FORMAT, path)
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        at = Position(**state["at"])
        last_epoch = at.epoch
    run_folder.describe(path, config)
    console = Console()
    metrics = MetricsLog(path, last_epoch=last_epoch, tensorboard=config.tensorboard)
    console.say(f"{config.method} on {config.dataset}, {config.arch}, {device}, {amp or 'float32'} -> {path}")
    pictures = open_pictures(config, method, data.train.paths, source.paths if source else (), device, console)
    return Run(config, path, console, metrics, device, amp, data, method, optimizer, scaler, *pictures, at)


def open_source(config: Config, train: ImageSet) -> ImageSet:
    """The training pictures of `--source`, all of known identity and none of them among `train`."""
    source = open_set(
        config.source, config.source_dir, config.source_pattern, config.skip_bad_images, config.workers, Console()
    ).train
    if (source.pids < 0).any():
        raise UserError(f"--source {config.source} has no labels: every picture's identity must be known")
    shared = set(source.paths) & set(train.paths)
    if shared:
        raise UserError(f"--source and --dataset share pictures, such as {min(shared)}: choose two different sets")
    pids = np.unique(source.pids, return_inverse=True)[1]  # pictures left out may have taken an identity with them
    return ImageSet(source.paths, pids, source.cams)


def open_pictures(
    config: Config,
    method: Method,
    train: tuple[Path, ...],
    source: tuple[Path, ...],
    device: torch.device,
    console: Console,
) -> tuple[Pictures, Pictures, Pictures | None]:
    """`plain`, `training`, `source` of a `Run`: over one array of decoded pictures, or streams if it does not fit."""
    both, first, options = train + source, len(train), {"device": device, "threads": config.workers}
    pixels = decoded(both, config.size, config.cache, console=console, **options)
    if pixels is not None:
        plain, training = ImageStore(train, pixels[:first]), ImageStore(both, pixels)
        return plain, training, ImageStore(source, pixels[first:]) if source else None
    stream = partial(ImageStream, size=config.size, **options)
    training = stream(both, views=method.views, batch_size=config.batch_size * method.domains)
    return stream(train), training, stream(source) if source else None


def label_pictures(run: Run) -> np.ndarray:
    """Cluster the training pictures and fill the memory: [N] int64 pseudo labels."""
    method, epoch, clock = run.method, run.at.epoch, Clock(run.at.seconds)

    def extract_features(encoder: Encoder, *, source: bool = False) -> Tensor:
        with run.console.progress("extracting") as report:
            return extract(encoder, run.source if source else run.plain, amp=run.amp, progress=report)

    with clock.stage("extract"):
        features = method.features(extract_features)
    graph = method.graph(features, epoch, clock)
    with clock.stage("dbscan"):
        labels = method.labels(graph, epoch)
    if not in_company(labels).any():
        raise UserError(
            f"epoch {epoch + 1} found no cluster among {len(labels)} pictures: raise --eps "
            "or lower --min-samples, or check that the pictures show several people more than once"
        )
    with clock.stage("memory"):
        method.fill_memory(features, labels)
    run.at.seconds = dict(clock)
    return labels


def in_company(labels: np.ndarray) -> np.ndarray:
    """[N] bool: whether a picture shares its label; methods without outliers give each a class of its own."""
    counts = np.bincount(labels[labels >= 0], minlength=labels.max() + 1)
    return (labels >= 0) & (counts[labels] > 1) if len(counts) else labels >= 0


def train_epoch(run: Run) -> None:
    """Run the steps of one epoch that are still to do."""
    config, method, at, clock = run.config, run.method, run.at, Clock(run.at.seconds)
    for group in run.optimizer.param_groups:
        group["lr"] = method.lr(at.epoch)
    method.train()
    plan = method.plan(at.labels.numpy(), at.epoch)
    unread: list[Tensor] = []  # losses that the host has not looked at yet
    with run.console.progress("training") as report, clock.stage("train") as lap:
        for batch in batches(run, plan):
            with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
                loss = sum(method.loss(batch).values())
            run.optimizer.zero_grad()
            run.scaler.scale(loss).backward()
            run.scaler.step(run.optimizer)
            run.scaler.update()
            method.after_step(batch)
            at.step += 1
            unread.append(loss.detach())
            report(at.step * plan.shape[1], plan.size)
            saving = at.step % config.save_steps == 0 and at.step < len(plan)
            if saving or at.step == len(plan) or len(unread) == CHECK_STEPS[run.device.type]:
                read_losses(run, unread, plan)
            if saving:
                lap()
                at.seconds = dict(clock)
                save(run)
    at.seconds = dict(clock)


def batches(run: Run, plan: np.ndarray) -> Iterator[Batch]:
    """The batches of `plan` [iters, B] from the current step on."""
    config, at, views = run.config, run.at, run.method.views
    method, width = run.method, plan.shape[1]
    labels = torch.from_numpy(method.joint_labels(at.labels.numpy())).to(run.device)
    sets = [run.data.train] if method.source is None else [run.data.train, method.source]
    cams = torch.from_numpy(np.concatenate([part.cams for part in sets])).to(run.device)
    first = at.step

    def wanted() -> Iterator[tuple[np.ndarray, list[Augmentation]]]:
        for step in range(first, len(plan)):
            positions = np.arange(step * width, (step + 1) * width)
            yield (
                plan[step],
                [
                    draw(view, config.size, positions, seed=config.seed, epoch=at.epoch, number=number)
                    for number, view in enumerate(views)
                ],
            )

    for step, pictures in enumerate(run.training(wanted()), first):
        index = torch.from_numpy(plan[step]).to(run.device, non_blocking=True)
        yield Batch(pictures, labels[index], index, cams[index], at.epoch, at.steps_before + step)


def read_losses(run: Run, unread: list[Tensor], plan: np.ndarray) -> None:
    """Add up the losses that are still on the device; stop at one that is not finite, with its batch saved."""
    values = torch.stack(unread).tolist()
    for step, value in enumerate(values, run.at.step - len(values)):
        if not math.isfinite(value):
            path = run.folder / "nonfinite.json"
            paths = [str(run.training.paths[i]) for i in plan[step]]
            checkpoint.write_json(path, {"epoch": run.at.epoch + 1, "step": step, "loss": str(value), "batch": paths})
            raise UserError(
                f"the loss of epoch {run.at.epoch + 1}, step {step} is {value}: its batch is listed in {path}; "
                "lower --lr or train without --amp, continuing from the last checkpoint"
            )
        run.at.loss += value
    unread.clear()


def epoch_row(run: Run) -> dict[str, Any]:
    """What metrics.jsonl says of the epoch that has just been trained, without scores."""
    config, at, labels = run.config, run.at, run.at.labels.numpy()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if run.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.device) / 2**20
    return {
        "epoch": at.epoch + 1,
        "clusters": len(np.unique(labels[in_company(labels)])),
        "outliers": int((~in_company(labels)).sum()),
        "loss": at.loss / at.step,
        "lr": run.method.lr(at.epoch),
        **label_scores(labels, run.data.train.pids),
        "seconds": at.seconds,
        "images_per_second": at.step * config.batch_size * run.method.domains / at.seconds["train"],
        "peak_memory_mb": peak,
    }


def finish_epoch(run: Run, row: dict[str, Any]) -> None:
    """Evaluate if it is due, and record the epoch."""
    config, epoch = run.config, row["epoch"]
    if run.data.query is not None and (epoch % config.eval_step == 0 or epoch == config.epochs):
        clock = Clock(row["seconds"])
        with clock.stage("evaluate"):
            for prefix, encoder in {"": run.method.model, **run.method.others}.items():
                scores = score_encoder(encoder, run.data, config.size, run.console, amp=run.amp, threads=config.workers)
                row |= {score_key(prefix, name): getattr(scores, name) for name in SCORES}
        row |= {"seconds": dict(clock)}
    run.metrics.add(row)
    run.console.say(epoch_line(row, config.epochs))


def save(run: Run) -> None:
    """Write all state to last.pt."""
    state = {
        "format": FORMAT,
        "config": to_json(run.config),
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "at": asdict(run.at),
    }
    checkpoint.save(run.folder, state)


def summarise(run: Run) -> None:
    """Print the scores before training, at the end, and of the best epoch, for each encoder that is evaluated."""
    scored = {row["epoch"]: row for row in read_metrics(run.folder / "metrics.jsonl") if "mAP" in row}
    table = {}
    for prefix in ("", *run.method.others) if scored else ():
        best = max(scored, key=lambda epoch: scored[epoch][score_key(prefix, "mAP")])
        names = {"untrained": min(scored), f"last epoch ({max(scored)})": max(scored),
                 f"best on the test set (epoch {best})": best}  # fmt: skip
        table |= {
            f"{name}{prefix and ', ' + prefix}": {key: scored[epoch][score_key(prefix, key)] for key in SCORES}
            for name, epoch in names.items()
        }
    if table:
        run.console.say(score_table(table))
    run.console.say(f"model and metrics are in {run.folder}")


def method_settings(method: str, place: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a method sets everywhere, and what it sets for one data set or recipe."""
    cls = method_class(method)
    return cls.defaults, cls.recipes.get(place, {})


if __name__ == "__main__":
    main()
