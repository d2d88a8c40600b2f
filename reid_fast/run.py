"""The parts of a run, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid_fast import run_folder
from reid_fast.captured import check_capturable
from reid_fast.checkpoint import CheckpointWriter
from reid_fast.config import Config, to_json
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, Batch, ImageFiles, Loader, open_loader
from reid_fast.data.open import open_set
from reid_fast.data.sets import ImageSet, ReidSet, TrainingSet
from reid_fast.device import amp_dtype, choose_kernels, pick_device, pick_threads, threads
from reid_fast.errors import UserError
from reid_fast.evaluate import announce
from reid_fast.gradients import with_shared_gradients
from reid_fast.labels.extract import BATCH as EXTRACTED
from reid_fast.methods import Method, new_method
from reid_fast.methods.settings import SourceSettings
from reid_fast.metrics import check_evaluable
from reid_fast.metrics_log import MetricsLog
from reid_fast.models.footprint import check_room
from reid_fast.models.norm import share_groups
from reid_fast.models.stochastic_depth import set_keys
from reid_fast.ranks import ALONE, Ranks, Split
from reid_fast.sinks import open_sinks
from reid_fast.stop import Stop

_PLANNED = 64  # bytes of an image of a step: its place, index, class, camera, keys, where it is drawn and where it lies
_NEIGHBOUR = 8  # bytes: index and similarity, in 4 each
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
    best_silhouette: float = -1.0  # the least there is
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
    fingerprints: dict[str, tuple[int, str]]  # of the training images
    sizes: Tensor  # [N] of the training images, in bytes
    at: Position
    ranks: Ranks
    split: Split | None  # of a batch among several ranks
    loss: Callable[[Batch], Tensor]  # of a step
    stop: Stop
    test_images: ImageFiles | None = None  # from the first evaluation on


@contextmanager
def together(config: Config, ranks: Ranks) -> Iterator[Stop]:
    """Inside, ranks talk to one another, signals are noted, and the network has its CPU threads."""
    device, stop = pick_device(config.device, ranks.local_rank), Stop()
    with stop.listening(grace=None if ranks.size == 1 else GRACE), ranks.connected(device), computing(config, ranks):
        yield stop


@contextmanager
def computing(config: Config, ranks: Ranks) -> Iterator[None]:
    """Inside, the network has its CPU threads; several ranks share the cores of their machine, in all they compute."""
    if ranks.group is not None:
        with threads(pick_threads(config.threads, ranks.local_size)):
            yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(pick_threads(config.threads) if config.threads else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(
    config: Config,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
    opened: tuple[ReidSet, TrainingSet] | None = None,
    held: ExitStack | None = None,
) -> Run:
    """Open the data, unless they are, and put the parts together; with `--resume`, as the last checkpoint has them.

    Args:
        config, ranks, stop: see `Run`.
        opened: the data.
        held: keeps other runs out of the folder until it ends.
    """
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
    check_memory(config, method, images, device, amp, ranks)
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = new_optimizer(config, weights)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)

    path, state = ranks.from_first(lambda: open_run(config, images, held or ExitStack()))
    sizes = torch.from_numpy(ranks.from_first(images.sizes))
    at = Position()
    if state is not None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a device with bfloat16 has none
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
    if config.amp and amp is None:
        console.say("--amp: this processor has no instructions for bfloat16 and is faster in float32")
    if state is None:
        console.say(f"weights: {method.model.origin}")
    elif changed := np.flatnonzero(state["sizes"] != sizes).tolist():
        console.say(
            f"{len(changed)} training images have other sizes in bytes than when the run was saved, the first one "
            f"{images.images.paths[changed[0]]}: it does not end as a run that was never stopped"
        )
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
    return Run(*parts, loader, images.fingerprints(), sizes, at, ranks, split, loss, stop or Stop())


def check_memory(
    config: Config, method: Method, images: TrainingSet, device: torch.device, amp: torch.dtype | None, ranks: Ranks
) -> None:
    """Refuse settings whose plan, neighbours or batches cannot fit into memory, before they are made.

    Raises:
        UserError: they cannot; the setting is named.
    """
    N, batch = len(images.target), config.batch_size * images.domains
    steps = config.iters or max(1, N // config.batch_size)
    on_host: dict[str, float] = {
        "--iters and --batch-size": steps * batch * _PLANNED,
        "--k1" if method.neighbours == config.k1 else "--neighbours": N * min(method.neighbours, N) * _NEIGHBOUR,
    }
    check = partial(check_room, method.model, config.size, precision=amp)
    check(device, batch=min(N, EXTRACTED))
    trained = -(-batch * len(method.views) // ranks.size)
    check(device, batch=trained, trained=True, beside=on_host if device.type == "cpu" else {})
    if device.type != "cpu":
        check(torch.device("cpu"), batch=0, beside=on_host)


def step_loss(method: Method, batch: Batch) -> Tensor:
    """The sum of a method's losses."""
    set_keys(method, batch.keys)
    return reduce(add, method.training_step(batch).values())


def new_optimizer(config: Config, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """What moves the weights, in a launch or two a step."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(weights, config.lr, weight_decay=config.weight_decay, fused=True)


def open_run(config: Config, images: TrainingSet, held: ExitStack) -> tuple[Path, dict[str, Any] | None]:
    """The run folder, this run's alone while it is held, and the state to continue from, if there is one and it may."""
    path = run_folder.choose(config)
    held.enter_context(run_folder.held(path, config.resume))
    state = run_folder.load(path) if config.resume and (path / "last.pt").exists() else None
    if state is not None:
        run_folder.check_same(state, config, images.fingerprints(), path)
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
        "images": run.fingerprints,
        "sizes": run.sizes,
    }
    run.checkpoints.save(state)
