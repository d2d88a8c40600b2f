"""The features of a gallery as a faiss index on disk, so that they are made once."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid_fast.data.sets import Paths
from reid_fast.errors import UserError
from reid_fast.run_folder import check_output, write_json
from reid_fast.whole_file import write_whole

_FORMAT = 2  # of the sidecar
_KIND = b"IxFI"  # how a file of an `IndexFlatIP` begins
_WAY_OUT = "remove it to have it made anew, or choose another --index"


def load_index(path: Path, encoder: str, gallery: Paths) -> Tensor | None:
    """[G, D] float32 features of a gallery from the index that `save_index` wrote; None where there is none yet.

    Args:
        path: of the index.
        encoder: fingerprint of the encoder that is in use.
        gallery: the G images that are to be searched.

    Raises:
        UserError: faiss is missing; the index is damaged; it is of another encoder or of other images.
    """
    faiss = _faiss()
    if not path.exists():
        check_output(path)
        return None
    sidecar = _sidecar(path)
    try:
        said = json.loads(sidecar.read_text())
        if (checksum := _checksum(path)) != said["crc32"]:  # faiss may crash on what is damaged, or run out of memory
            raise ValueError("its checksum is another")
        index = faiss.read_index(str(path))
        vectors = torch.from_numpy(index.reconstruct_n(0, index.ntotal))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"the index {path} is damaged or not of reid-fast ({reason}): {_WAY_OUT}") from None
    expected = _about(encoder, gallery, vectors, checksum)
    for name, other in {"encoder": "another encoder", "gallery": "other gallery images"}.items():
        if said.get(name) != expected[name]:
            raise UserError(f"the index {path} was made of {other}: {_WAY_OUT}")
    if said != expected:
        raise UserError(f"the index {path} does not fit {sidecar}: {_WAY_OUT}")
    return vectors


def save_index(path: Path, encoder: str, gallery: Paths, features: Tensor) -> None:
    """Write an `IndexFlatIP` of faiss, whose rows are the gallery's, and beside it what it was made of, PATH.json.

    Args:
        path: of the index.
        encoder: fingerprint of the encoder that made the features.
        gallery: G images.
        features: [G, D] float32.
    """
    faiss = _faiss()
    vectors = features.cpu().contiguous()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    checksum = 0

    def add(block: bytes) -> None:
        nonlocal checksum
        checksum = zlib.crc32(block, checksum)

    faiss.write_index(index, faiss.PyCallbackIOWriter(add))
    # The index last: one that is there has all that belongs to it.
    write_json(_sidecar(path), _about(encoder, gallery, vectors, checksum))
    write_whole(path, lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write)))


def _about(encoder: str, gallery: Paths, vectors: Tensor, checksum: int) -> dict[str, Any]:
    images, width = vectors.shape
    made_of = {"format": _FORMAT, "encoder": encoder, "gallery": _list_of(gallery)}
    return {**made_of, "images": images, "width": width, "crc32": checksum}


def _checksum(path: Path) -> int:
    """CRC-32 of an index.

    Raises:
        ValueError: it is of another kind, whose reader is not to see it.
    """
    with path.open("rb") as file:
        if (start := file.read(len(_KIND))) != _KIND:
            raise ValueError("it is no IndexFlatIP")
        checksum = zlib.crc32(start)
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _list_of(gallery: Paths) -> str:
    """A hash of the files' absolute paths, sizes and times of last change, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text, place in zip(gallery.texts(), gallery.places(), strict=True):
        status = os.stat(place.file)
        key = f"{os.path.abspath(text)}\0{place.offset} {place.size} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(os.fsencode(key))
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("--index needs faiss: pip install faiss-cpu, or search without it") from None
    return faiss
