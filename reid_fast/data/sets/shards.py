"""The `folder` set packed into tar files, as WebDataset has them."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from reid_fast.data.cache import file_about, keep
from reid_fast.data.sets.files import is_folder, is_image, is_litter, scanned
from reid_fast.data.sets.manifest import FRESH
from reid_fast.data.sets.numbering import Numbering
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.pattern import captured, compiled
from reid_fast.data.sets.records import ImageSet, ReidSet, Unparsed
from reid_fast.data.sets.tar import Entry, TarFile
from reid_fast.errors import UserError

_VERSION = 1  # of an index: raise it whenever what is read from a shard changes
_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the others are refused by their content
_LONGEST = 1 << 20  # bytes of a file beside an image
_PLAIN = {"cam": "cam", "pid": "pid", "cls": "pid"}  # neighbours of an image that hold one text


class ShardImage(NamedTuple):
    """An image in a shard."""

    name: str
    offset: int
    size: int
    cam: str | None
    pid: str | None


def is_shard(name: str) -> bool:
    """Whether a file of this name should be a tar file."""
    return name.lower().endswith(_SUFFIXES)


def shards_in(folder: Path) -> list[Path]:
    """The tar files of a folder that holds nothing else."""
    found = []
    with scanned(folder) as entries:
        for entry in entries:
            if is_shard(entry.name) and not is_folder(entry):
                found.append(folder / entry.name)
            elif not is_litter(entry.name):
                return []
    return found


def load_shards(
    tree: Path,
    shards: Sequence[Path],
    pattern: str | None = None,
    *,
    progress: Callable[[int, None], None] | None = None,
    unparsed: Unparsed | None = None,
) -> ReidSet:
    """Every image in these tar files as a training split; there is no query or gallery. Nothing is unpacked.

    The files of an image, which follow one another, share their name up to the first dot. Beside `key.jpg`, a
    `key.json` may hold `{"cam": ..., "pid": ...}`, and `key.cam`, `key.pid` or `key.cls` (an identity) one text.
    Cameras and identities are numbered from 0 in the sorted order of their texts; -1 is unknown.

    Args:
        tree: what the shards are known by: their folder, or the one shard.
        shards: uncompressed tar files.
        pattern: as `load_folder` has it, in place of what stands beside the images; a path goes on behind the name of
            its shard.
        progress: called with (images found so far, None).
        unparsed: see `captured`.

    Raises:
        UserError: no images, one that is there twice, a compressed or damaged shard, a pattern that does not fit.
    """
    expression = compiled(pattern)
    index = _Index(tree)
    folders: dict[str, str] = {}
    spans, cams, pids = array("q"), Numbering(), Numbering()

    def groups() -> Iterator[tuple[str, list[str]]]:
        for shard in sorted(shards, key=lambda shard: f"{shard}/"):  # the order of the paths in them
            images = sorted(index.images(shard))
            _refuse_repeated(shard, images)
            for image in images:
                spans.extend((image.offset, image.size))
                cams.add(image.cam)
                pids.add(image.pid)
            for inner, group in groupby((os.path.split(image.name) for image in images), itemgetter(0)):
                folder = os.path.join(shard, inner, "")
                folders[folder] = str(shard)
                yield folder, [name for _, name in group]
            if progress is not None:
                progress(len(spans) // 2, None)

    paths = Paths.grouped(groups()).packed_in(folders, spans)
    if not paths:
        raise UserError(f"the tar files in {tree} hold no images: choose others")
    index.save()
    root = tree if os.path.isdir(tree) else tree.parent
    known = {"pid": pids.numbers(), "cam": cams.numbers(), **captured(expression, paths, root, unparsed)}
    return ReidSet("folder", ImageSet(paths, known["pid"], known["cam"]), None, None, "tar files of images", tree)


def _refuse_repeated(shard: Path, images: list[ShardImage]) -> None:
    for one, other in pairwise(images):
        if one.name == other.name:
            raise UserError(f"{shard}/{one.name} is there twice: pack the shard again")


class _Index:
    """What the shards of a tree hold, remembered until a shard changes its size or time.

    A line for each: its stamp, a checksum of the rest, the columns of `ShardImage` as JSON. A line that is not so
    counts for nothing, and the shard is read again.
    """

    def __init__(self, tree: Path) -> None:
        self._file = file_about(tree, "shards")
        self._known: dict[bytes, bytes] = {}
        self._used: dict[bytes, bytes] = {}
        try:
            lines = self._file.read_bytes().splitlines()
        except OSError:
            lines = []
        for line in lines:
            stamp, _, content = line.partition(b" ")
            self._known[stamp] = content

    def images(self, shard: Path) -> list[ShardImage]:
        """The images in it."""
        before = time.time_ns() - FRESH
        stamp, changed = _stamp(shard)
        content = self._known.get(stamp, b"")
        images = _decoded(content)
        if images is None:
            images = list(_images(shard))
            content = _encoded(images)
        if changed < before:
            self._used[stamp] = content
        return images

    def save(self) -> None:
        """Write what was asked for; what is known of other shards is forgotten."""
        lines = [b"%s %s\n" % line for line in self._used.items()]
        keep(self._file, None if self._used == self._known else lambda file: file.writelines(lines))


def _stamp(shard: Path) -> tuple[bytes, int]:
    try:
        status = os.stat(shard)
    except OSError as error:
        raise UserError(f"{shard} cannot be read ({error.strerror}): check its permissions") from None
    key = f"{_VERSION} {shard.name} {status.st_size} {status.st_mtime_ns}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16)
    return digest.hexdigest().encode(), status.st_mtime_ns


def _encoded(images: list[ShardImage]) -> bytes:
    content = json.dumps(list(zip(*images, strict=True))).encode()
    return b"%08x %s" % (zlib.crc32(content), content)


def _decoded(line: bytes) -> list[ShardImage] | None:
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content) or not content:
        return None
    return list(map(ShardImage, *json.loads(content))) if content != b"[]" else []


def _images(shard: Path) -> Iterator[ShardImage]:
    with TarFile(shard) as tar:
        for _, group in groupby(filter(_is_shown, map(_normal, tar)), _key):
            images, facts = [], dict[str, str | None]()
            for entry in group:
                if is_image(entry.name):
                    images.append(entry)
                else:
                    facts |= _facts(tar, shard, entry)
            yield from (ShardImage(*entry, facts.get("cam"), facts.get("pid")) for entry in images)


def _normal(entry: Entry) -> Entry:
    return entry._replace(name=os.path.normpath(entry.name).lstrip("/"))


def _is_shown(entry: Entry) -> bool:
    return not os.path.basename(entry.name).startswith(".")


def _key(entry: Entry) -> str:
    """What the files of one image share: the name up to its first dot."""
    folder, name = os.path.split(entry.name)
    return os.path.join(folder, name.partition(".")[0])


def _facts(tar: TarFile, shard: Path, entry: Entry) -> dict[str, str | None]:
    """What a file beside an image says of it."""
    kind = entry.name[len(_key(entry)) + 1 :].lower()
    if kind not in (*_PLAIN, "json"):
        return {}
    if entry.size > _LONGEST:
        raise UserError(f"{shard}/{entry.name} has {entry.size:,} bytes, too many for a label: pack the shard again")
    try:
        if kind in _PLAIN:
            return {_PLAIN[kind]: tar.read(entry.offset, entry.size).decode().strip() or None}
        content = json.loads(tar.read(entry.offset, entry.size))
    except (ValueError, RecursionError):
        raise UserError(f"{shard}/{entry.name} is not JSON or text in UTF-8: pack the shard again") from None
    if not isinstance(content, dict):
        return {}
    facts = {name: content[name] for name in ("cam", "pid") if content.get(name) not in (None, "")}
    if not all(isinstance(value, str | int | float) for value in facts.values()):
        raise UserError(f"{shard}/{entry.name} has a cam or pid that is neither a text nor a number: correct it")
    return {name: str(value) for name, value in facts.items()}
