"""An epoch of Cluster Contrast on image files, stage by stage and whole: the engine beside a checkout."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import Peer
from peer_side import Task
from report import Lap, Row, interleaved, lap, ratio
from scipy import sparse
from torch import Tensor

import reid_fast
from reid_fast.command_line import parse
from reid_fast.data.images import ImageStream
from reid_fast.data.images.augmentation import draw
from reid_fast.data.sets import ImageSet, load_set
from reid_fast.data.sets.known import KNOWN
from reid_fast.data.synthetic import synthetic_folder
from reid_fast.device import amp_dtype
from reid_fast.epoch import label_images, train_epoch, train_step
from reid_fast.epoch import test_images as held_test_images
from reid_fast.errors import UserError
from reid_fast.evaluate import score_encoder
from reid_fast.labels.extract import extract
from reid_fast.metrics import Scores, rank_scores
from reid_fast.ranks import ALONE, Ranks
from reid_fast.run import Position, Run, build

REPEATS = 10  # calls of a lap, where one is short
COMPARED = 512  # images whose features are
# How far two sides may be apart in what they make of the same pictures, features and ranking. The published distance
# adds up hundreds of float32 numbers one after another: its own rounding reaches 1e-6.
TOLERANCE = {"features": 1e-4, "jaccard": 3e-6, "loss": 1e-4, "gradient": 1e-4, "memory": 1e-5, "mAP": 1e-3}


def epoch(smoke: bool, folders: Sequence[Path], peer: Peer) -> list[Row]:
    """Rows for the set in each folder, or else for the synthetic one, with the settings of `--recipe small`."""
    flags = ["--iters", "4", "--batch-size", "16"] if smoke else []
    rows = []
    with tempfile.TemporaryDirectory() as drawn:
        small = synthetic_folder(Path(drawn), train_ids=16, test_ids=6) if smoke and not folders else None
        for folder in folders or [small]:
            with opened(folder, "--recipe", "small", *flags) as run:
                rows += Sides(run, peer, 1 if smoke else 3).rows()
    return rows


@contextmanager
def opened(folder: Path | None, *flags: str, ranks: Ranks = ALONE) -> Iterator[Run]:
    """A run as the driver builds it, on the set in a folder or the synthetic one; what it says goes to stderr."""
    where = [] if folder is None else ["--dataset", dataset_in(folder), "--data-dir", str(folder)]
    with tempfile.TemporaryDirectory() as logs, redirect_stdout(sys.stderr):
        config, _ = parse(["--method", "cc", *where, "--logs-dir", f"{logs}/run", *flags])
        before = torch.get_num_threads()
        try:
            yield build(config, ranks)
        finally:
            torch.set_num_threads(before)


def dataset_in(folder: Path) -> str:
    """The name of the set that a folder holds.

    Raises:
        UserError: none that is known.
    """
    for name in KNOWN:
        try:
            load_set(name, folder)
        except UserError:
            continue
        return name
    raise UserError(f"--data-dir {folder} holds none of {', '.join(KNOWN)}: point it at the folder of one")


class Sides:
    """A run beside a checkout that has its images, its encoder and its settings."""

    def __init__(self, run: Run, peer: Peer, runs: int) -> None:
        self.run, self.peer, self.runs = run, peer, runs
        self.config, self.method, self.encoder = run.config, run.method, run.method.model
        self.train, self.query, self.gallery = run.data.train, *evaluated_images(run)
        self._epoch()  # one before all others: clusters as they are in training, and warm caches
        self.labels = label_images(run)
        self.features = extract(self.encoder, run.loader.target)
        self.weights = {name: value.clone() for name, value in self.encoder.state_dict().items()}
        self.memory = self.method.memory.rows.clone()
        weights = {name: value.cpu().numpy() for name, value in self.weights.items()}
        parts = self.train, self.query, self.gallery
        peer("start", Task(self.config, *parts, weights, str(run.device), torch.get_num_threads()))

    def rows(self) -> list[Row]:
        """A row for each stage, after what both sides make has been compared."""
        apart = self.compare()
        features, n, k1 = self.features.cpu().numpy(), len(self.features), self.config.k1
        graph = self._graph()
        images, x, rows, labels = self._step_inputs()
        sizes = {"B": len(x), "C": len(rows), "D": x.shape[1], "times": REPEATS}
        both = self._both
        return [
            *self._pictures(),
            both("extraction", self._extraction, "extraction", images=n),
            both("kNN", lambda: reid_fast.knn(self.features, k1), "knn", features, n=n),
            both("kNN and graph", self._graph, "jaccard", features, n=n, peak=True),
            both("DBSCAN", lambda: self.method.assign_labels(graph, 0), "dbscan", n=n),
            both("memory part", self._contrast, "memory_part", x, rows, labels, **sizes),
            both("full step", self._step, "step", images, rows, labels, **sizes),
            both("evaluation", self._scores, "evaluation", images=len(self.query) + len(self.gallery)),
            *self._epochs(apart),
        ]

    def compare(self) -> dict[str, float]:
        """How far apart both sides are, given the same pictures, features and ranking.

        Raises:
            SystemExit: further than `TOLERANCE`.
        """
        features, config = self.features.cpu().numpy(), self.config
        ranking = reid_fast.knn(features, config.k1)[0].astype(np.int64)
        _, x, rows, labels = self._step_inputs()
        distance = reid_fast.jaccard_distance(features, config.k1, config.k2)
        ours = *self._contrast(), self.method.memory.rows
        mine = dict(zip(("loss", "gradient", "memory"), ours, strict=True))
        theirs = dict(zip(mine, self.peer("contrast", x, rows, labels), strict=True))
        mine |= {"features": features[:COMPARED], "jaccard": distance}
        theirs |= {"features": self.peer("features", self._first_images())}
        theirs["jaccard"] = self.peer("jaccard_distance", features, ranking)
        mine["mAP"], theirs["mAP"] = self._mean_precisions()
        apart = {name: float(np.abs(np.asarray(mine[name]) - theirs[name]).max()) for name in TOLERANCE}
        if far := [f"{name} by {value:.2g}" for name, value in apart.items() if not value <= TOLERANCE[name]]:
            raise SystemExit(f"epoch: the engine and the {self.peer.name} are apart: {', '.join(far)}")
        return {name: float(f"{value:.2g}") for name, value in apart.items()}

    def _first_images(self) -> np.ndarray:
        first = np.arange(min(COMPARED, len(self.train)))
        return next(self.run.loader.target.plain(first, COMPARED)).contiguous().cpu().numpy()

    def _mean_precisions(self) -> tuple[float, float]:
        """The engine's mAP and theirs, of the same features."""
        config, device = self.config, self.run.device
        streams = [ImageStream(part.paths, config.size, device=device) for part in (self.query, self.gallery)]
        query, gallery = (extract(self.encoder, stream).cpu() for stream in streams)
        known = (self.query.pids, self.query.cams), (self.gallery.pids, self.gallery.cams)
        scores = rank_scores(query, *known[0], gallery, *known[1])
        return scores.mAP, self.peer("mean_precision", query.numpy(), gallery.numpy())

    def _both(
        self,
        stage: str,
        ours: Callable[[], object],
        theirs: str,
        *inputs: Any,
        times: int = 1,
        peak: bool = False,
        **facts: Any,
    ) -> Row:
        """The row of a stage, both sides in turn; a lap calls it `times`."""

        def laps() -> Lap:
            self._reset()
            return lap(lambda: [ours() for _ in range(times)], peak=peak)[1] / times

        mine, beside = interleaved([laps, lambda: self.peer("lap", times, peak, theirs, *inputs)], self.runs)
        return self._row(stage, mine, beside, **facts)

    def _row(self, stage: str, ours: Row, beside: Row | None = None, **facts: Any) -> Row:
        config = self.config
        about = {"set": config.dataset, "arch": config.arch, "size": config.size, "threads": torch.get_num_threads()}
        row = {"stage": stage, **about, **facts, "ours": ours}
        if beside is None:
            return row
        return row | {"beside": beside, "beside_is": self.peer.name, "faster": ratio(beside, ours)}

    def _reset(self) -> None:
        """The weights and the memory of the start."""
        self.encoder.load_state_dict(self.weights)
        self.method.memory.rows = self.memory.clone()

    def _pictures(self) -> list[Row]:
        """The images of an epoch's steps: held, or decoded at every use; and what the store costs once a run."""
        plan, views, size, paths = self._plan(), self.method.views, self.config.size, self.train.paths
        drawn = [draw(view, size, np.arange(plan.size), seed=0, epoch=0) for view in views]
        where = {"device": self.run.device, "threads": self.config.workers}
        stream = ImageStream(paths, size, views=views, batch_size=plan.shape[1], **where)
        decoder = ImageStream(paths, size, norm=None, **where)
        ways: list[Callable[[], Iterator[object]]] = [
            lambda: self.run.loader.batches(plan, self.labels, epoch=0),
            lambda: stream(plan.ravel(), drawn, plan.shape[1]),
            lambda: decoder.plain(np.arange(len(paths)), 256),
        ]
        sides = [lambda way=way: lap(lambda: drained(way()))[1] for way in ways]
        laps = interleaved([*sides, lambda: self.peer("lap", 1, False, "pictures", self.labels)], self.runs)
        held, streamed, decoded, beside = laps
        return [
            self._row("pictures, decoded once", decoded, images=len(paths)),
            self._row("pictures, store", held, beside, images=plan.size),
            self._row("pictures, DALI stream", streamed, beside, images=plan.size),
        ]

    def _epochs(self, apart: dict[str, float]) -> list[Row]:
        """Features to labels, and the steps: in full precision on both sides, and in mixed on the engine's."""
        mixed = amp_dtype(self.run.device, True, self.config.width)

        def epoch(amp: torch.dtype | None) -> Lap:
            self._reset()
            self.run.amp = amp
            return lap(self._epoch, peak=True)[1]

        sides = [lambda: epoch(mixed), lambda: epoch(None), lambda: self.peer("lap", 1, True, "epoch")]
        in_mixed, in_full, beside = interleaved(sides, self.runs)
        found = {"ours": int(self.run.at.epoch_labels.max() + 1), "beside": self.peer("clusters")}
        facts = {"iters": self.config.iters, "clusters": found, "apart": apart}
        return [
            self._row("whole epoch", in_full, beside, **facts),
            self._row("whole epoch, the engine with --amp", in_mixed, beside, iters=self.config.iters),
        ]

    def _plan(self) -> np.ndarray:
        return self.method.plan_epoch(self.labels, 0)

    def _extraction(self) -> Tensor:
        return extract(self.encoder, self.run.loader.target, amp=self.run.amp)

    def _graph(self) -> sparse.csr_matrix:
        config = self.config
        return reid_fast.jaccard_graph(self.features, config.k1, config.k2, config.eps)

    def _step_inputs(self) -> tuple[np.ndarray, ...]:
        """A batch's images and features, the memory's rows, and the batch's labels, for the other side."""
        batch = self.batch = next(iter(self.run.loader.batches(self._plan()[:1], self.labels, epoch=0)))
        inputs = batch.views[0].contiguous(), self.features[batch.index], self.memory, batch.labels
        self._reset()
        self.method.train()
        return tuple(values.cpu().numpy() for values in inputs)

    def _contrast(self) -> tuple[float, np.ndarray]:
        """The memory's part of a step from given features: the loss and its gradient to them."""
        x = self.features[self.batch.index].requires_grad_()
        loss = self.method.contrast(x, self.batch)["contrast"]
        loss.backward()
        return loss.item(), x.grad.cpu().numpy()

    def _step(self) -> None:
        train_step(self.run, self.batch)

    def _scores(self) -> Scores:
        images = held_test_images(self.run, self.query, self.gallery)
        return score_encoder(self.encoder, images, self.query, self.gallery, self.run.console, amp=self.run.amp)

    def _epoch(self) -> None:
        run = self.run
        run.at = Position()
        run.at.labels = torch.from_numpy(label_images(run))
        train_epoch(run)


def evaluated_images(run: Run) -> tuple[ImageSet, ImageSet]:
    """Queries and gallery.

    Raises:
        UserError: the set has none.
    """
    if run.data.query is None or run.data.gallery is None:
        raise UserError(f"{run.config.dataset} has no queries and gallery to time an evaluation on: take another set")
    return run.data.query, run.data.gallery


def drained(batches: Iterator[object]) -> None:
    """Have every batch made."""
    for _ in batches:
        pass
