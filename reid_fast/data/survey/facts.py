"""The facts of a data set, and what follows from them for training and evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reid_fast.config import Config
from reid_fast.console import Console
from reid_fast.data.images import undecodable
from reid_fast.data.sets import (
    CountRow,
    ImageSet,
    Paths,
    ReidSet,
    check_images,
    count_rows,
    equal_files,
    load_set,
    read_contents,
    recognise,
)
from reid_fast.data.synthetic import is_synthetic
from reid_fast.device import pick_threads
from reid_fast.errors import UserError
from reid_fast.metrics import check_evaluable, have_matches


class Fault(NamedTuple):
    """What is wrong with an image."""

    path: Path
    reason: str


class Spread(NamedTuple):
    """The smallest, the middle and the largest of some numbers."""

    least: int
    median: float
    most: int


class Duplicate(NamedTuple):
    """Files of one content."""

    paths: Paths
    splits: tuple[str, ...]  # that they lie in, each once
    contradictory: bool  # two of them name different identities


@dataclass(frozen=True)
class SplitFacts:
    """Of train, query or gallery.

    Attributes:
        counts: identities, images and cameras, beside what was published.
        per_identity: images of each known identity, distractors left out; None where none is known.
        one_camera: an image of each identity that one camera alone has seen.
    """

    counts: CountRow
    per_identity: Spread | None
    one_camera: Paths


@dataclass(frozen=True)
class Survey:
    """All that was found.

    Attributes:
        data: the records, as `--dataset` and its folder give them, images whose names do not parse left out.
        splits: the facts of each split that the set has.
        heights, widths: of the images, in pixels; None where no header says it.
        unparsed: images whose names do not say what they must.
        unreadable: images that cannot be decoded, and why.
        duplicates: files of one content.
        scored: queries that have a match under the field's rule; None where there is nothing to evaluate on.
        unmatched: the other queries.
        training, evaluation: why it could not work; nothing where it can.
    """

    data: ReidSet
    splits: tuple[SplitFacts, ...]
    heights: Spread | None
    widths: Spread | None
    unparsed: tuple[Fault, ...]
    unreadable: tuple[Fault, ...]
    duplicates: tuple[Duplicate, ...]
    scored: int | None
    unmatched: Paths
    training: tuple[str, ...]
    evaluation: tuple[str, ...]


def survey(data_dir: Path, dataset: str | None, pattern: str | None, *, console: Console) -> Survey:
    """Read every file of a data set and say all that can be said of it.

    Args:
        data_dir: as `load_set` has it; of the synthetic set, its folder.
        dataset: its name; None recognises it by its content.
        pattern: camera and identity expression of a `folder` set.
        console: shows progress bars.

    Raises:
        UserError: it cannot be read as that set: no such folder, another layout, a stray file, an empty split.
    """
    if dataset is None:
        dataset = "folder" if pattern is not None else _name_of(data_dir, console)
    data, unparsed = _records(data_dir, dataset, pattern, console)
    paths = reduce(add, (split.paths for split in data.splits.values()))
    with console.progress("reading", "files") as report:
        found = read_contents(paths, report)
    unreadable = _unreadable(paths, console)
    usable = data.without(fault.path for fault in unreadable)
    sizes = found.size[found.size.all(axis=1)]
    scored, unmatched, evaluation = _evaluation(usable)
    return Survey(
        data,
        tuple(_facts(data, counts) for counts in count_rows(data)),
        _spread(sizes[:, 0]) if len(sizes) else None,
        _spread(sizes[:, 1]) if len(sizes) else None,
        unparsed,
        unreadable,
        tuple(_duplicates(data, paths, equal_files(found.digest))),
        scored,
        unmatched,
        tuple(_training(usable, unparsed, unreadable)),
        evaluation,
    )


def _records(data_dir: Path, dataset: str, pattern: str | None, console: Console) -> tuple[ReidSet, tuple[Fault, ...]]:
    unparsed: list[Fault] = []
    with console.progress("listing", "files") as report:
        data = load_set(
            dataset,
            data_dir,
            pattern=pattern,
            progress=report,
            unparsed=lambda path, reason: unparsed.append(Fault(path, reason)),
        )
    return data, tuple(unparsed)


def _name_of(data_dir: Path, console: Console) -> str:
    """The set whose layout it is; of several the one that the folder is called by, or whose names parse best."""
    if is_synthetic(data_dir):
        return "synthetic"
    names = recognise(data_dir) if os.path.isdir(data_dir) else []
    if len(names) < 2:
        return next(iter(names), "folder")

    def misfit(name: str) -> tuple[int, int]:
        try:
            data, unparsed = _records(data_dir, name, None, console)
        except UserError:
            return 2**62, 0
        return len(unparsed), sum(row.images != row.published_images for row in count_rows(data))

    return min(names, key=misfit)  # the first one of equals


def _unreadable(paths: Paths, console: Console) -> tuple[Fault, ...]:
    """Files that are visibly broken, which decoders may not survive, then those that cannot be decoded."""
    with console.progress("checking files", "files") as report:
        reasons = dict(check_images(paths, progress=report))
    whole = np.setdiff1d(np.arange(len(paths)), list(reasons))
    some = paths.select(whole)
    with console.progress("decoding") as report:
        fails = some.isin(Paths.of(undecodable(some, pick_threads(0), report)))
    reasons |= dict.fromkeys(whole[fails].tolist(), "cannot be decoded")
    return tuple(Fault(paths[row], reasons[row]) for row in sorted(reasons))


def _facts(data: ReidSet, counts: CountRow) -> SplitFacts:
    images = data.splits[counts.split]
    known = images.pids >= 0
    if counts.split == "gallery" and data.query is not None and not (data.query.pids == 0).any():
        known &= images.pids > 0  # nobody looks for distractors
    pids, per_identity = np.unique(images.pids[known], return_counts=True)
    seen = np.unique(np.stack([images.pids, images.cams])[:, known & (images.cams >= 0)], axis=1)
    of, cameras = np.unique(seen[0], return_counts=True)
    alone = np.isin(pids, of[cameras == 1])
    first = np.unique(images.pids[known], return_index=True)[1]
    return SplitFacts(
        counts,
        _spread(per_identity) if len(pids) else None,
        images.paths.select(np.flatnonzero(known)[first[alone]]),
    )


def _spread(numbers: np.ndarray) -> Spread:
    return Spread(int(numbers.min()), float(np.median(numbers)), int(numbers.max()))


def _duplicates(data: ReidSet, paths: Paths, groups: list[np.ndarray]) -> list[Duplicate]:
    splits = np.repeat(list(data.splits), [len(split) for split in data.splits.values()])
    pids = np.concatenate([split.pids for split in data.splits.values()])
    found = []
    for rows in groups:
        # Training numbers its identities anew, so they are compared with one another alone.
        named = [(splits[row] == "train", int(pids[row])) for row in rows if pids[row] >= 0]
        contradictory = len(set(named)) > len({training for training, _ in named})
        found.append(Duplicate(paths.select(rows), tuple(dict.fromkeys(splits[rows].tolist())), contradictory))
    return found


def _training(usable: ReidSet, unparsed: tuple[Fault, ...], unreadable: tuple[Fault, ...]) -> list[str]:
    reasons = []
    if unparsed:
        reasons.append(f"{len(unparsed):,} names do not parse: {unparsed[0].reason}")
    if unreadable:
        path, reason = unreadable[0]
        reasons.append(
            f"{len(unreadable):,} images cannot be read, the first one {path} ({reason}): repair or remove them, or "
            "pass --skip-bad-images"
        )
    if len(usable.train) < Config.min_samples:
        reasons.append(f"{len(usable.train)} training images make no cluster of {Config.min_samples}: add images")
    return reasons


def _evaluation(usable: ReidSet) -> tuple[int | None, Paths, tuple[str, ...]]:
    """Queries that are scored, those that are not, and why none is."""
    query, gallery = usable.query, usable.gallery
    if query is None or gallery is None:
        return None, Paths.of(()), ()
    columns = query.pids, query.cams, gallery.pids, gallery.cams
    matched = have_matches(*columns)
    try:
        check_evaluable(*columns)
    except UserError as error:
        return 0, query.paths, (str(error),)
    return int(matched.sum()), _selected(query, ~matched), ()


def _selected(images: ImageSet, mask: np.ndarray) -> Paths:
    return images.paths.select(mask)
