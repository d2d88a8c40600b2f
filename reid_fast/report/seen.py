"""What the images of a run show, where they are at hand: its clusters, and the mistakes of its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reid_fast import run_folder
from reid_fast.clock import Clock
from reid_fast.command_line import flags, parse
from reid_fast.config import Config
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, ImageStream
from reid_fast.data.sets import ReidSet, TrainingSet
from reid_fast.device import amp_dtype, pick_device
from reid_fast.errors import UserError
from reid_fast.evaluate import load_encoder
from reid_fast.labels.extract import extract
from reid_fast.labels.neighbours import find_neighbours
from reid_fast.methods import new_method
from reid_fast.models.encoder import Encoder
from reid_fast.ranks import ALONE
from reid_fast.report.clusters import Clusters, pick_clusters
from reid_fast.report.mistakes import Mistake, hardest
from reid_fast.report.runs import RunRecord
from reid_fast.run import computing, open_data

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """Each part is a sentence where it cannot be shown.

    Attributes:
        clusters: those of the last labelling.
        epoch: that was, or would be, trained with them.
        mistakes: of the encoder behind the last whole epoch; none where every query's first image is correct.
    """

    clusters: Clusters | str
    epoch: int
    mistakes: list[Mistake] | str


def look(run: RunRecord, folders: Mapping[str, Path | None], *, device: str, threads: int, console: Console) -> Seen:
    """Open the run's data, cluster it once more if the checkpoint has no labels, and rank its test set.

    Nothing in the run folder changes.

    Args:
        run: whose.
        folders: where its data sets are, as its settings of this name say it; None: where they were in training.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads that decode images.
        console: shows progress bars and what was found.

    Raises:
        UserError: a folder was given and does not hold the set.
    """
    try:
        config = _config(run, folders)
        data, images = open_data(replace(config, workers=threads), console)
    except UserError as error:
        if any(folders.values()):
            raise
        sentence = f"This needs the run's images: {error}."
        return Seen(sentence, 0, sentence)
    place = pick_device(device)
    amp = amp_dtype(place, config.amp, config.width)

    def features_of(encoder: Encoder, paths: Any) -> Tensor:
        files = ImageStream(paths, config.size, device=place, threads=threads, norm=NORMALISATIONS[config.image_norm])
        with console.progress("extracting") as report:
            return extract(encoder, files, amp=amp, progress=report)

    epoch = 0

    def clusters() -> Clusters:
        nonlocal epoch
        labels, epoch = _labels(run.folder, config, images, place, features_of, console)
        return pick_clusters(labels, images.target)

    with computing(config, ALONE):  # with as many threads as in training, for the same bits
        found = _or_why_not(clusters)
        return Seen(found, epoch, _or_why_not(lambda: _mistakes(run.folder, data, place, features_of)))


def _or_why_not(part: Callable[[], T]) -> T | str:
    try:
        return part()
    except UserError as error:
        return f"This cannot be shown: {error}."


def _config(run: RunRecord, folders: Mapping[str, Path | None]) -> Config:
    given = flags({name: folder for name, folder in folders.items() if folder is not None})
    return parse(["--config", str(run.folder / "config.json"), *given])[0]


def _labels(
    folder: Path,
    config: Config,
    images: TrainingSet,
    device: torch.device,
    features_of: Callable[[Encoder, Any], Tensor],
    console: Console,
) -> tuple[np.ndarray, int]:
    """The labels of the epoch that a run is in or that would come next, and its number from 1."""
    if not (folder / "last.pt").exists():
        raise UserError(f"{folder} holds no last.pt, whose state gives the clusters: keep it, or train again")
    state = run_folder.load(folder)
    run_folder.check_same(state, config, images.fingerprints(), folder)
    epoch: int = state["at"]["epoch"]
    labels: Tensor | None = state["at"]["labels"]
    if labels is not None:
        return labels.numpy(), epoch + 1
    method = new_method(replace(config, weights="none"), images)
    try:
        method.load_state_dict(state["method"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the state in {folder} does not fit the data set as it is now ({reason})") from None
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it

    def extract_features(encoder: Encoder, *, source: bool = False) -> Tensor:
        some = images.source if source else images.target
        assert some is not None  # a method asks for a source only where there is one
        return features_of(encoder, some.paths)

    features = method.extract_features(extract_features)
    clock = Clock(device)
    neighbours = find_neighbours(features, method.neighbours, clock, search=config.knn, say=console.say)
    assert neighbours is not None  # one process has them all
    graph = method.build_graph(features, neighbours, epoch)
    return method.assign_labels(graph, epoch), epoch + 1


def _mistakes(
    folder: Path, data: ReidSet, device: torch.device, features_of: Callable[[Encoder, Any], Tensor]
) -> list[Mistake]:
    if data.query is None or data.gallery is None:
        raise UserError("the data set has no queries and gallery to rank")
    encoder, _ = load_encoder(folder)
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stub lacks it
    features = features_of(encoder, data.query.paths + data.gallery.paths)
    queries, others = features.split([len(data.query), len(data.gallery)])
    return hardest(data.query, queries, data.gallery, others)
