"""From a set's name and a folder to its records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

from reid_fast.data.sets.files import is_folder, is_litter
from reid_fast.data.sets.folder import load_folder
from reid_fast.data.sets.known import ANY_MARKET, KNOWN, SetSpec
from reid_fast.data.sets.layouts import Layout
from reid_fast.data.sets.records import ReidSet, Unparsed
from reid_fast.data.sets.shards import is_shard, load_shards, shards_in
from reid_fast.data.sets.table import load_table
from reid_fast.errors import UserError

_DEPTH = 3  # folders below --data-dir to look in
_LAYOUTS = [layout for spec in KNOWN.values() for layout in spec.layouts]


def load_set(
    name: str,
    data_dir: Path,
    *,
    pattern: str | None = None,
    progress: Callable[[int, None], None] | None = None,
    unparsed: Unparsed | None = None,
) -> ReidSet:
    """Read a data set's records; images are not opened.

    Args:
        name: a public set, or `folder`.
        data_dir: the set's folder or one above it; what counts is its content, then its name. Of a `folder` set,
            also a table, see `load_table`, or tar files, see `load_shards`.
        pattern: camera (and identity) expression of a `folder` set, see `load_folder`.
        progress: called with (images of a `folder` set found so far, None).
        unparsed: is told of images whose names do not parse. Of a public set they are then left out, of a `folder` set
            their identities and cameras are unknown.

    Raises:
        UserError: no such folder, another set's content, an empty split, a listed image that is missing. Unless
            `unparsed` is told: a name that does not parse, an identity or camera the set does not have.
    """
    data_dir = Path(data_dir).expanduser()
    if name == "folder" and os.path.isfile(data_dir):
        return _load_file(data_dir, pattern, progress, unparsed)
    if not os.path.isdir(data_dir):
        raise UserError(f"the folder {data_dir} does not exist: point --data-dir at the data")
    if name == "folder":
        if shards := shards_in(data_dir):
            return load_shards(data_dir, shards, pattern, progress=progress, unparsed=unparsed)
        return load_folder(data_dir, pattern, progress=progress, unparsed=unparsed)
    if pattern is not None:
        raise UserError(f"--pattern is for --dataset folder; {name}'s own file names give its cameras")
    if name == "synthetic":
        return market_style(name, data_dir)
    spec = KNOWN[name]
    root, layout = _locate(spec, data_dir)
    return ReidSet(name, *layout.read(root, unparsed), layout.title, root)


def recognise(data_dir: Path) -> list[str]:
    """The public sets whose layout a folder has, or one up to three below it; first those that are called so."""
    found = []
    for name, spec in KNOWN.items():
        if (place := _found(spec, data_dir)) is not None:
            found.append((place[0].name.lower() not in spec.folders, name))
    return [name for _, name in sorted(found, key=itemgetter(0))]


def _load_file(
    file: Path,
    pattern: str | None,
    progress: Callable[[int, None], None] | None,
    unparsed: Unparsed | None,
) -> ReidSet:
    if is_shard(file.name):
        return load_shards(file, [file], pattern, progress=progress, unparsed=unparsed)
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{file} is no folder and no .csv, .parquet or .tar file: choose one of them")
    if pattern is not None:
        raise UserError(f"--pattern is for folders; {file} gives cameras and identities in its columns cam and pid")
    return load_table(file, progress=progress)


def market_style(name: str, root: Path) -> ReidSet:
    """Read a folder laid out and named like Market-1501, with any number of identities and cameras.

    Args:
        name: the name the result carries.
        root: holds `bounding_box_train`, `query` and `bounding_box_test`; names start with `<pid>_c<camera>`,
            cameras count from 1, pid 0 is a distractor, pid -1 junk.

    Raises:
        UserError: as `load_set`.
    """
    if not ANY_MARKET.matches(root):
        raise UserError(f"{root} is not a Market-style set: looked for {ANY_MARKET.sought()}; found {_content(root)}")
    return ReidSet(name, *ANY_MARKET.read(root), ANY_MARKET.title, root)


def _locate(spec: SetSpec, data_dir: Path) -> tuple[Path, Layout]:
    if (found := _found(spec, data_dir)) is not None:
        return found
    sought = "; or ".join(layout.sought() for layout in spec.layouts)
    raise UserError(
        f"{data_dir} does not hold {spec.title}: looked, {_DEPTH} folders deep, for {sought}; "
        f"found {_content(data_dir)}; point --data-dir at the set's folder"
    )


def _found(spec: SetSpec, data_dir: Path) -> tuple[Path, Layout] | None:
    matches = ((root, layout) for root in _candidates(spec, data_dir) for layout in spec.layouts)
    return next(((root, layout) for root, layout in matches if layout.matches(root)), None)


def _candidates(spec: SetSpec, data_dir: Path) -> Iterator[Path]:
    """`data_dir`, then the folders below it: first those with one of the set's names, then by depth."""
    yield data_dir
    level, below = [data_dir], []
    for _ in range(_DEPTH):
        level = [child for parent in level for child in _subfolders(parent)]
        below += level
    rank = {name: place for place, name in enumerate(spec.folders)}
    yield from sorted(below, key=lambda folder: rank.get(folder.name.lower(), len(rank)))


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            names = {e.name for e in found if is_folder(e) and not is_litter(e.name)}
    except OSError:
        return []
    splits = {name for layout in _LAYOUTS if names.issuperset(layout.folders) for name in layout.folders}
    return [folder / name for name in sorted(names - splits)]


def _content(folder: Path, shown: int = 8) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "") or "nothing"
