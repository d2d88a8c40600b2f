"""The stages of an epoch: features, labels, memory, steps, scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor

from reid_fast import run_folder
from reid_fast.captured import CapturedStep, CudaGraphs
from reid_fast.clock import Clock
from reid_fast.clustering import reporting
from reid_fast.data.images import NORMALISATIONS, Batch, ImageFiles, open_files
from reid_fast.data.sets import ImageSet
from reid_fast.errors import Stopped, UserError
from reid_fast.evaluate import score_encoder
from reid_fast.labels.company import in_company
from reid_fast.labels.extract import extract
from reid_fast.labels.neighbours import find_neighbours
from reid_fast.labels.silhouette import silhouette
from reid_fast.metrics_log import SCORES
from reid_fast.models.encoder import Encoder
from reid_fast.run import Run, save

# Steps between looks at the loss, and at whether to stop: on CUDA a look waits for the GPU.
CHECK_STEPS = {"cpu": 1, "cuda": 20}


def label_images(run: Run) -> np.ndarray:
    """Cluster the training images and fill the memory: [N] int64 pseudo labels."""
    clock = Clock(run.device, run.at.seconds)
    features, labels = cluster_images(run, clock)
    if not in_company(labels).any():
        by = getattr(run.config, "cluster", "dbscan")
        settings = {"dbscan": "raise --eps or lower --min-samples", "hdbscan": "lower --min-samples or --min-cluster"}
        way_out = settings.get(by, "lower --min-similarity or --min-cluster")
        raise UserError(
            f"epoch {run.at.epoch + 1} found no cluster among {len(labels)} images: {way_out}, "
            "or check that the images show several people more than once"
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
    with run.console.progress("neighbours", "parts") as report, reporting(report):
        neighbours = find_neighbours(
            features, method.neighbours, clock, search=search, say=run.console.say, ranks=ranks
        )

    def cluster() -> tuple[np.ndarray, float]:
        assert neighbours is not None  # the first rank has them
        with clock.stage("jaccard"), run.console.progress("graph", "parts") as report, reporting(report):
            graph = method.build_graph(features, neighbours, epoch)
        with clock.stage("dbscan"), run.console.progress("labels", "parts") as report, reporting(report):
            labels = method.assign_labels(graph, epoch)
        with clock.stage("silhouette"):
            return labels, silhouette(features, labels)

    labels, run.at.silhouette = ranks.from_first(cluster)
    return features, labels


def train_epoch(run: Run) -> None:
    """Run the steps of one epoch that are still to do."""
    config, method, at, clock = run.config, run.method, run.at, Clock(run.device, run.at.seconds)
    labels = at.epoch_labels
    step = new_step(run)
    method.train()
    plan = method.plan_epoch(labels, at.epoch)
    if (visited := method.images_of_pass(labels)) < config.batch_size:
        run.console.say(
            f"epoch {at.epoch + 1}: the clusters give {visited} images, {config.num_instances} each, which do not fill "
            f"a batch of {config.batch_size}: it has more of each"
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
            way_on = f", from the last epoch's encoder with --weights {run.folder}" if run.at.epoch else ""
            raise UserError(
                f"the loss of epoch {run.at.epoch + 1}, step {step} is {value}: its batch is listed in {path}; "
                f"train with a lower --lr or without --amp in another --logs-dir{way_on}"
            )
        run.at.loss += value
    unread.clear()


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
