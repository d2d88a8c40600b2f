"""Show the gallery images most like each query, as ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from torch import Tensor

from reid_fast.command_line import read
from reid_fast.config import InferenceSettings
from reid_fast.console import Console
from reid_fast.data.open import open_images, open_set
from reid_fast.data.sets import SIZES, ImageSet, Paths, encoded, identified
from reid_fast.device import pick_threads, threads
from reid_fast.errors import UserError, exit_on_user_error
from reid_fast.marks import Count, Positional, Short, check_ranges
from reid_fast.pages import visible
from reid_fast.retrieval import (
    LoadedEncoder,
    ShownLists,
    configured_encoder,
    load_index,
    own_files,
    rank,
    rank_again,
    ranked_page,
    ranked_picture,
    same_camera,
    save_index,
)
from reid_fast.run_folder import check_output, write_json
from reid_fast.whole_file import write_whole

_OWN_FILE = "A file is not in its own list."
_RERANKED = "The order is that of k-reciprocal re-ranking (k1 20, k2 6, λ 0.3), the numbers are cosine similarities."
_SAME_CAMERA = (
    "As the field's same-camera rule has it, a query does not see images of its own identity from its own camera."
)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(InferenceSettings):
    """Find the gallery images most like each query, and show them as ranked lists."""

    encoder: Annotated[Path, Positional]
    """what makes features: a run folder, or a file of weights"""
    query: tuple[Path, ...] = ()
    """what is searched for: image files, and folders, .csv, .parquet or .tar files of images"""
    gallery: tuple[Path, ...] = ()
    """what is searched in: the same"""
    pattern: str | None = None
    """with --query and --gallery: a regular expression on file names with the groups `pid` and `cam`, where identities
    and cameras are known"""
    dataset: Annotated[str | None, Short("-d")] = None
    """instead of --query and --gallery: a data set that has them, see the list above"""
    data_dir: Path | None = None
    """the data set's folder, or one that holds it"""
    k: Annotated[Count, Short("-k")] = 10
    """images of a list"""
    show: Count = 20
    """queries that are shown, evenly spread over all; --json has all of them"""
    rerank: bool = False
    """order the lists by k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)"""
    index: Path | None = None
    """a faiss index that keeps the gallery's features: written where it is missing, read where it is there"""
    html: Path | None = None
    """write the lists as a page with their images, one file that works offline"""
    png: Path | None = None
    """write the lists as one picture"""
    json: Path | None = None
    """write all lists as JSON"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        sets = ", ".join(name for name in SIZES if name != "folder")
        config = read(SearchConfig, argv, description=f"{SearchConfig.__doc__}\n\nData sets: {sets}.")
        check_ranges(config)
        _check(config)
        with threads(pick_threads(config.threads)):
            search(config)


def search(config: SearchConfig) -> None:
    """Search, write what is asked for, and say what was found."""
    console = Console()
    encoder = configured_encoder(config.encoder, config)
    query, gallery = _images(config, console)
    found = _gallery_features(config, encoder, gallery.paths, console)
    hidden, rule = _hidden(query, gallery)
    asked = encoder.encode_files(query.paths, console)
    if config.rerank:
        index, similarity = rank_again(asked, found, config.k, hidden, console)
        rule = f"{_RERANKED} {rule}"
    else:
        index, similarity = rank(asked, found, config.k, hidden)
    lists = ShownLists(query, gallery, index, similarity, rule)
    console.say(f"{len(query):,} queries searched for in {len(gallery):,} gallery images. {rule}")
    if lists.identities_known:
        right, known = lists.first_right()
        console.say(f"the first image shows the right person for {right:,} of {known:,} queries of known identity")
    _write(config, lists, console)


def _check(config: SearchConfig) -> None:
    given = bool(config.query), bool(config.gallery), config.dataset is not None
    if given not in ((True, True, False), (False, False, True)):
        raise UserError("give either --query and --gallery, or --dataset")
    if config.dataset is not None and config.pattern is not None:
        raise UserError("--pattern is for --query and --gallery: a data set's own file names give its identities")
    if config.dataset is None and config.data_dir is not None:
        raise UserError("--data-dir is for --dataset: --query and --gallery are paths themselves")
    for flag in ("index", "html", "png", "json"):
        path = getattr(config, flag)
        if path is not None:
            check_output(path)


def _images(config: SearchConfig, console: Console) -> tuple[ImageSet, ImageSet]:
    """Queries and gallery, with their identities and cameras where these are known."""
    left_out: tuple[Path, ...]
    if config.dataset is None:
        query, gallery = (
            open_images(sources, skip_bad_images=config.skip_bad_images, threads=config.workers, console=console)
            for sources in (config.query, config.gallery)
        )
        sets, left_out = identified(config.pattern, query.paths, gallery.paths), query.left_out + gallery.left_out
    else:
        opened = open_set(
            config.dataset,
            config.data_dir,
            skip_bad_images=config.skip_bad_images,
            threads=config.workers,
            console=console,
        )
        if opened.data.query is None or opened.data.gallery is None:
            raise UserError(f"{config.dataset} has no queries and gallery: give them by --query and --gallery")
        sets, left_out = [opened.data.query, opened.data.gallery], opened.left_out
    if left_out:
        console.say(f"left out {len(left_out)} unreadable images, the first one {visible(left_out[0])}")
    return sets[0], sets[1]


def _gallery_features(config: SearchConfig, encoder: LoadedEncoder, paths: Paths, console: Console) -> Tensor:
    """Of the index, or made now and put into it."""
    if config.index is None:
        return encoder.encode_files(paths, console)
    features = load_index(config.index, encoder.fingerprint, paths)
    if features is None:
        features = encoder.encode_files(paths, console)
        save_index(config.index, encoder.fingerprint, paths, features)
        console.say(f"index of {len(paths):,} images written to {config.index}")
    return features.to(encoder.device)


def _hidden(query: ImageSet, gallery: ImageSet) -> tuple[list[np.ndarray], str]:
    """The gallery rows that each query does not see, and why, in words."""
    own = own_files(query.paths, gallery.paths)
    if not ((query.pids >= 0) & (query.cams >= 0)).any():
        return own, _OWN_FILE
    ruled_out = same_camera(query, gallery)
    return [np.union1d(*rows) for rows in zip(own, ruled_out, strict=True)], f"{_SAME_CAMERA} {_OWN_FILE}"


def _write(config: SearchConfig, lists: ShownLists, console: Console) -> None:
    title = f"Ranked lists of {config.encoder.resolve().name}"
    if config.html is not None:
        content = ranked_page(lists, title, config.show).encode()
        write_whole(config.html, lambda file: file.write(content))
    if config.png is not None:
        picture = encoded(ranked_picture(lists, config.show), "PNG", optimize=True)
        write_whole(config.png, lambda file: file.write(picture))
    if config.json is not None:
        write_json(config.json, {"encoder": str(config.encoder), "k": config.k, **lists.to_json()})
    written = [str(path) for path in (config.html, config.png, config.json) if path is not None]
    if written:
        console.say(f"written to {', '.join(written)}")
        return
    for query in lists.chosen(config.show):
        console.say(visible(lists.query.paths[query]))
        for match in lists.matches(query):
            verdict = "" if match.verdict == "unknown" else f"  {match.verdict}"
            name = visible(lists.gallery.paths[match.row])
            console.say(f"  {match.rank:>3}  {match.similarity:.3f}  {name}{verdict}")
