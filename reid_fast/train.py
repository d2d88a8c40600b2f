"""Cluster, then train, epoch after epoch: `python -m reid_fast.train --method cc --amp`.

With several ranks (`torchrun -m reid_fast.train`) all of them run this, each on its part of the images. What they have
to say, to log and to save, the first one does for all.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from signal import SIGTERM
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid_fast import run_folder
from reid_fast.captured import CapturedStep, CudaGraphs, check_capturable
from reid_fast.checkpoint import CheckpointWriter
from reid_fast.clock import Clock
from reid_fast.command_line import flags, parse
from reid_fast.config import Config, to_json
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, Batch, ImageFiles, ImageStream, Loader, open_files, open_loader
from reid_fast.data.open import open_set
from reid_fast.data.sets import ImageSet, ReidSet, TrainingSet
from reid_fast.device import amp_dtype, choose_kernels, pick_device, pick_threads, threads
from reid_fast.errors import Stopped, UserError
from reid_fast.evaluate import announce, describe, load_encoder, score_encoder
from reid_fast.gradients import with_shared_gradients
from reid_fast.labels.company import in_company
from reid_fast.labels.extract import extract
from reid_fast.labels.neighbours import find_neighbours
from reid_fast.labels.silhouette import silhouette
from reid_fast.methods import Method, new_method
from reid_fast.methods.settings import SourceSettings
from reid_fast.metrics import check_evaluable, label_scores
from reid_fast.metrics_log import SCORES, MetricsLog, epoch_line, is_due, score_key, summary
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import share_groups, target_state
from reid_fast.models.stochastic_depth import set_keys
from reid_fast.ranks import ALONE, Ranks, Split, command
from reid_fast.rehearsal import Rehearsed, held_whole, made_up_labels, nothing_left, part_of, rows_to_search, table
from reid_fast.sinks import open_sinks
from reid_fast.stop import Stop

# Steps between looks at the loss, and at whether to stop: on CUDA a look waits for the GPU.
CHECK_STEPS = {"cpu": 1, "cuda": 20}
BEST = "best"  # of the run folder: what `--save-best` keeps, as `evaluate` takes it
GRACE = 25.0  # seconds from SIGTERM to the end of a rank that waits for one that is gone; torchrun kills after 30


@dataclass
class Position:
    """Where a run stands; saved with it."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way; 0: it has no labels yet
    steps_before: int = 0  # of the finished epochs
    labels: Tensor | None = None  # [N] int64, of the epoch under way
    silhouette: float = 0.0  # of those
    best_epoch: int = 0  # behind which `silhouette` was largest; 0: none yet
    best_silhouette: float = -math.inf
    loss: float = 0.0  # summed over its steps
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    @property
    def epoch_labels(self) -> np.ndarray:
        """[N] int64, of an epoch that has them."""
        assert self.labels is not None
        return self.labels.numpy()

    def next_epoch(self) -> Position:
        """Behind an epoch."""
        steps_before = self.steps_before + self.step
        best = self.best_epoch, self.best_silhouette
        return Position(self.epoch + 1, steps_before=steps_before, best_epoch=best[0], best_silhouette=best[1])


@dataclass
class Run:
    """The parts of a run."""

    config: Config
    folder: Path
    checkpoints: CheckpointWriter
    console: Console
    metrics: MetricsLog
    device: torch.device
    amp: torch.dtype | None
    data: ReidSet
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    at: Position
    ranks: Ranks
    split: Split | None  # of a batch among several ranks
    loss: Callable[[Batch], Tensor]  # of a step
    stop: Stop
    test_images: ImageFiles | None = None  # from the first evaluation on


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
    device = pick_device(config.device, ranks.local_rank)
    stop = Stop()
    with stop.listening(grace=None if ranks is ALONE else GRACE), ranks.connected(device), computing(config, ranks):
        run = build(config, ranks, stop)
        go_through_epochs(run)
        return run.folder


def rehearse(config: Config, ranks: Ranks = ALONE) -> Rehearsed:
    """Do a little of all that `train` does, say what the whole run would take, and leave nothing behind.

    Args:
        config, ranks: as `train` takes them.
    """
    device = pick_device(config.device, ranks.local_rank)
    stop = Stop()
    with (
        stop.listening(grace=None if ranks is ALONE else GRACE),
        ranks.connected(device),
        computing(config, ranks),
        nothing_left(config, ranks) as little,
    ):
        opened = ranks.from_first(lambda: open_data(little, Console(quiet=not ranks.first)))
        part, held = part_of(*opened, config), held_whole(opened[1], config, device)
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
def computing(config: Config, ranks: Ranks) -> Iterator[None]:
    """Inside, the network has its CPU threads; several ranks share the cores of their machine, in all they compute."""
    if ranks.group is not None:
        with threads(pick_threads(config.threads, ranks.local_size)):
            yield
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    yield


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


def build(
    config: Config,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
    opened: tuple[ReidSet, TrainingSet] | None = None,
) -> Run:
    """Open the data, unless they are, and put the parts together; with `--resume`, as the last checkpoint has them."""
    device = pick_device(config.device, ranks.local_rank)
    torch.manual_seed(config.seed)
    choose_kernels(config.deterministic)
    amp = amp_dtype(device, config.amp, config.width)
    if config.cuda_graph:
        check_capturable(device, amp, ranks)
    console = Console(quiet=not ranks.first)
    data, images = opened or ranks.from_first(lambda: open_data(config, console))
    with ranks.first_of_machine_first():
        method = new_method(config, images)
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = new_optimizer(config, weights)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)

    path, state = ranks.from_first(lambda: open_run(config))
    at = Position()
    if state is not None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        at = Position(**state["at"])
    with ranks.agreed():
        sinks = open_sinks(config, path) if ranks.first else []
    metrics = MetricsLog(path, last_epoch=-1 if state is None else at.epoch, writes=ranks.first, sinks=sinks)
    split = None if ranks.group is None else split_batches(config, images, ranks, device)
    if split is not None and split.spans(config.bn_group):
        share_groups(method, split)
    loss = with_shared_gradients(method, partial(step_loss, method), ranks)
    ranks.adopt([*method.parameters(), *method.buffers()])
    where = f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device
    console.say(f"{config.method} on {config.dataset}, {config.arch}, {where}, {amp or 'float32'} -> {path}")
    if state is None:
        console.say(f"weights: {method.model.origin}")
    if split is not None:
        console.say(describe_ranks(config, split))
    loader = open_loader(
        images,
        size=config.size,
        views=method.views,
        norm=NORMALISATIONS[config.image_norm],
        batch_size=config.batch_size * images.domains,
        cache=config.cache,
        cache_dir=config.cache_dir,
        ranks=ranks,
        seed=config.seed,
        device=device,
        threads=config.workers,
        console=console,
    )
    console.say(f"training {loader.held}")
    parts = config, path, CheckpointWriter(path), console, metrics, device, amp, data, method, optimizer, scaler
    return Run(*parts, loader, at, ranks, split, loss, stop or Stop())


def new_optimizer(config: Config, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """What moves the weights, in a launch or two a step."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(weights, config.lr, weight_decay=config.weight_decay, fused=True)


def open_run(config: Config) -> tuple[Path, dict[str, Any] | None]:
    """The run folder, and the state to continue from, if there is one and it may."""
    path = run_folder.choose(config)
    state = run_folder.load(path) if config.resume and (path / "last.pt").exists() else None
    if state is not None:
        run_folder.check_same(state, config, path)
    run_folder.describe(path, config)
    return path, state


def split_batches(config: Config, images: TrainingSet, ranks: Ranks, device: torch.device) -> Split:
    """Whole BatchNorm groups to each rank, or, where there are fewer groups than ranks, whole identities.

    Raises:
        UserError: there are fewer identities than ranks, too.
    """
    B, K = config.batch_size, config.num_instances
    if ranks.size > B // K:
        raise UserError(
            f"--batch-size {B} holds {B // K} identities, too few for {ranks.size} processes: start at most {B // K}, "
            "or choose a larger batch"
        )
    group = config.bn_group or B
    return Split(ranks, B, group if group < B and -(-B // group) >= ranks.size else K, images.domains, device)


def describe_ranks(config: Config, split: Split) -> str:
    """Who does what, for the console."""
    ranks = split.ranks
    counts = " + ".join(str(share.stop - share.start) for share in split.shares)
    across = ", whose statistics ranks share" if split.spans(config.bn_group) else ""
    return (
        f"{ranks.size} processes: {counts} images of each batch, "
        f"in BatchNorm groups of {config.bn_group or config.batch_size}{across}"
    )


def open_data(config: Config, console: Console) -> tuple[ReidSet, TrainingSet]:
    """The data set, its counts said, and what is trained on: its training images, behind those of a source."""
    opened = partial(open_set, skip_bad_images=config.skip_bad_images, threads=config.workers, console=console)
    data = announce(opened(config.dataset, config.data_dir, pattern=config.pattern), console)
    if data.query is not None and data.gallery is not None:
        check_evaluable(data.query.pids, data.query.cams, data.gallery.pids, data.gallery.cams)
    if not isinstance(config, SourceSettings) or config.source is None:
        return data, TrainingSet(data.train)
    source = announce(opened(config.source, config.source_dir, pattern=config.source_pattern), console).train
    if (source.pids < 0).any():
        raise UserError(f"--source {config.source} has no labels: every image's identity must be known")
    if shared := source.shared(data.train):
        raise UserError(f"--source and --dataset share images, such as {shared[0]}: choose two different sets")
    pids = np.unique(source.pids, return_inverse=True)[1]  # images left out may have taken an identity with them
    return data, TrainingSet(data.train, ImageSet(source.paths, pids, source.cams))


def label_images(run: Run) -> np.ndarray:
    """Cluster the training images and fill the memory: [N] int64 pseudo labels."""
    clock = Clock(run.device, run.at.seconds)
    features, labels = cluster_images(run, clock)
    if not in_company(labels).any():
        raise UserError(
            f"epoch {run.at.epoch + 1} found no cluster among {len(labels)} images: raise --eps "
            "or lower --min-samples, or check that the images show several people more than once"
        )
    fill(run, features, labels, clock)
    return labels


def fill(run: Run, features: Tensor, labels: np.ndarray, clock: Clock) -> None:
    """Make the epoch's memory of [N, D] features and their [N] labels."""
    with clock.stage("memory"):
        run.method.fill_memory(features, labels)
        run.ranks.adopt([*run.method.parameters(), *run.method.buffers()])
    run.at.seconds = dict(clock)


def cluster_images(run: Run, clock: Clock) -> tuple[Tensor, np.ndarray]:
    """Cluster the training images: [N, D] features and [N] int64 pseudo labels, whose silhouette `run.at` gets."""
    method, epoch = run.method, run.at.epoch

    def extract_features(encoder: Encoder, *, source: bool = False) -> Tensor:
        with run.console.progress("extracting") as report:
            images = run.loader.source if source else run.loader.target
            assert images is not None  # a method asks for a source only where there is one
            return extract(encoder, images, amp=run.amp, progress=report, ranks=run.ranks)

    with clock.stage("extract"):
        features = method.extract_features(extract_features)
    search, ranks = run.config.knn, run.ranks
    neighbours = find_neighbours(features, method.neighbours, clock, search=search, say=run.console.say, ranks=ranks)

    def cluster() -> tuple[np.ndarray, float]:
        assert neighbours is not None  # the first rank has them
        with clock.stage("jaccard"):
            graph = method.build_graph(features, neighbours, epoch)
        with clock.stage("dbscan"):
            labels = method.assign_labels(graph, epoch)
        with clock.stage("silhouette"):
            return labels, silhouette(features, labels)

    labels, run.at.silhouette = ranks.from_first(cluster)
    return features, labels


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


def train_epoch(run: Run) -> None:
    """Run the steps of one epoch that are still to do."""
    config, method, at, clock = run.config, run.method, run.at, Clock(run.device, run.at.seconds)
    labels = at.epoch_labels
    step = new_step(run)
    method.train()
    plan = method.plan_epoch(labels, at.epoch)
    if (clusters := len(np.unique(labels[labels >= 0]))) * config.num_instances < config.batch_size:
        run.console.say(
            f"epoch {at.epoch + 1}: {clusters} clusters with {config.num_instances} images each do not fill a batch of "
            f"{config.batch_size}, which therefore has more of each"
        )
    batches = run.loader.batches(
        plan, labels, epoch=at.epoch, first_step=at.step, steps_before=at.steps_before, split=run.split
    )
    unread: list[Tensor] = []  # losses that the host has not looked at yet
    with run.stop.noting(), run.console.progress("training") as report, clock.stage("train") as lap:
        for batch in batches:
            unread.append(step(replace(batch, drawn=method.draw(batch))))
            at.step += 1
            report(at.step * plan.shape[1], plan.size)
            saving, stopping = at.step % config.save_steps == 0 and at.step < len(plan), False
            if saving or at.step == len(plan) or len(unread) == CHECK_STEPS[run.device.type]:
                read_losses(run, unread, plan)
                stopping = run.ranks.any(run.stop.signal != 0)
            if saving or stopping:
                lap()
                at.seconds = dict(clock)
                save(run)
            if stopping:
                raise Stopped(run.stop.signal or SIGTERM)
    at.seconds = dict(clock)
    run.ranks.adopt(method.buffers())  # running statistics: the first group's, which the first rank has


def new_step(run: Run) -> Callable[[Batch], Tensor]:
    """What takes the steps of the epoch under way, at its learning rate."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.method.lr(run.at.epoch)
        if "capturable" in group:  # Adam's, which counts its steps
            group["capturable"] = run.config.cuda_graph
    step = partial(train_step, run)
    return CapturedStep(step, run.method.step_constants, CudaGraphs()) if run.config.cuda_graph else step


def step_loss(method: Method, batch: Batch) -> Tensor:
    """The sum of a method's losses."""
    set_keys(method, batch.keys)
    return reduce(add, method.training_step(batch).values())


def train_step(run: Run, batch: Batch) -> Tensor:
    """One step; its loss, still on the device: nothing here waits for it."""
    with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
        loss = run.loss(batch)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.method.finish_step(batch)
    return loss.detach()


def read_losses(run: Run, unread: list[Tensor], plan: np.ndarray) -> None:
    """Add up the losses that are still on the device; stop at one that is not finite, with its batch saved."""
    values = torch.stack(unread).tolist()
    for step, value in enumerate(values, run.at.step - len(values)):
        if not math.isfinite(value):
            path = run.folder / "nonfinite.json"
            paths = [str(run.loader.paths[i]) for i in plan[step]]
            content = {"epoch": run.at.epoch + 1, "step": step, "loss": str(value), "batch": paths}
            if run.ranks.first:
                run_folder.write_json(path, content)
            raise UserError(
                f"the loss of epoch {run.at.epoch + 1}, step {step} is {value}: its batch is listed in {path}; "
                "lower --lr or train without --amp, continuing from the last checkpoint"
            )
        run.at.loss += value
    unread.clear()


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


def score(run: Run, encoder: Encoder) -> dict[str, float]:
    """The scores of an encoder on the test images; nothing where there are none."""
    query, gallery = run.data.query, run.data.gallery
    if query is None or gallery is None:
        return {}
    images = test_images(run, query, gallery)
    scores = score_encoder(encoder, images, query, gallery, run.console, amp=run.amp, ranks=run.ranks)
    return {name: getattr(scores, name) for name in SCORES}


def test_images(run: Run, query: ImageSet, gallery: ImageSet) -> ImageFiles:
    """Queries, then gallery; held from the first evaluation on, in the room that the training images leave."""
    if run.test_images is None:
        config = run.config
        run.test_images, held = open_files(
            query.paths + gallery.paths,
            config.size,
            norm=NORMALISATIONS[config.image_norm],
            cache=config.cache,
            cache_dir=config.cache_dir,
            beside=run.loader.held.in_memory,
            ranks=run.ranks,
            device=run.device,
            threads=config.workers,
            console=run.console,
        )
        run.console.say(f"test {held}")
    return run.test_images


def save(run: Run) -> None:
    """Let all state be written to last.pt: it does not depend on the number of ranks."""
    if not run.ranks.first:
        return
    state = {
        "config": to_json(run.config),
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "at": asdict(run.at),
    }
    run.checkpoints.save(state)


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
    try:
        config, _ = parse(flags(settings))
    except SystemExit:  # a notebook goes on
        raise UserError("a setting has a value of the wrong type: the message above names it") from None
    return train(config, Ranks.from_environment())


class _Callable(ModuleType):
    """This module, so that `from reid_fast import train` is a function and `import reid_fast.train` stays a module."""

    def __call__(self, **settings: Any) -> Path:
        return train_with(**settings)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    main()
