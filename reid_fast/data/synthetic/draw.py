"""The default data set: drawn people seen by six drawn cameras, in the layout of Market-1501.

Nothing has to be downloaded: `synthetic_folder()` draws about 4,600 JPEG files of 128x64 pixels in seconds.
All chance comes from generators keyed by (seed, what, whom, where, which), so an image does not depend on
the others, on the order of drawing or on the number of workers. (Another version of Pillow may encode the
same image to other bytes.)

    python -m reid_fast.data.synthetic --sheet sheet.png
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import secrets
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from reid_fast.data.cache import cache_folder
from reid_fast.data.sets import encoded, picture
from reid_fast.data.synthetic.cameras import CAMERAS, FRAME, HEIGHT, WIDTH, background, expose, facing, occlude
from reid_fast.data.synthetic.people import Person, draw_lots, paint, strike_pose
from reid_fast.errors import UserError
from reid_fast.whole_file import locked, own, write_whole

VERSION = 1  # part of the folder's name: raise it whenever any image changes
TRAIN_IDS, TEST_IDS = 120, 60
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

IDENTITY, SIGHTINGS, SHOT, DISTRACTOR = range(4)  # what a random generator is for


def synthetic_folder(
    root: Path | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    train_ids: int = TRAIN_IDS,
    test_ids: int = TEST_IDS,
) -> Path:
    """Returns the folder of the synthetic data set, which is drawn first if it is not there.

    Args:
        root: where data sets are kept; by default `$XDG_CACHE_HOME/reid-fast` or `~/.cache/reid-fast`.
        seed: another seed gives other people in the same six places.
        workers: processes that draw; by default one per available core. The bytes do not depend on it.
        progress: called with (identities drawn, identities in total) while drawing.
        train_ids: identities 1..train_ids are for training.
        test_ids: the next ones are for queries and gallery, which gets one distractor (pid 0) for each.

    Raises:
        UserError: the folder cannot be written.
    """
    root = cache_folder() if root is None else Path(root)
    folder = _place(root, seed, train_ids, test_ids)
    sweep(root)
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with scratch_folder(root, folder.name) as scratch:
            unfinished = scratch / folder.name
            draw_set(unfinished, seed, train_ids, test_ids, workers or available_cores(), progress)
            publish(unfinished, folder)
    except OSError as error:
        raise UserError(f"Cannot write the synthetic data set to {folder}: {error.strerror or error}.") from error
    except BrokenProcessPool:
        raise UserError(f"A process that draws {folder} was killed: free some memory and start again.") from None
    return folder


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder to draw in, and beside it a lock that is older and outlives it, by which `sweep` finds it."""
    lock = root / f".{name}-{secrets.token_hex(4)}.lock"
    with own(lock):
        folder = lock.with_suffix("")
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                lock.unlink()


def sweep(root: Path) -> None:
    """Removes what killed processes have left; one that still draws has its lock."""
    for lock in root.glob(".synthetic-*.lock"):
        with suppress(OSError), lock.open("ab") as file:
            if locked(file):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()


def is_drawn(root: Path | None = None) -> bool:
    """Whether `synthetic_folder` would find the set with the same root."""
    return _place(cache_folder() if root is None else root, 0, TRAIN_IDS, TEST_IDS).is_dir()


def _place(root: Path, seed: int, train_ids: int, test_ids: int) -> Path:
    size = "" if (train_ids, test_ids) == (TRAIN_IDS, TEST_IDS) else f"-{train_ids}+{test_ids}"
    return root / f"synthetic-v{VERSION}-seed{seed}{size}"


def is_synthetic(folder: Path) -> bool:
    """Whether a folder is called as `synthetic_folder` calls what it draws."""
    return re.fullmatch(r"synthetic-v\d+-seed\d+(-\d+\+\d+)?", folder.name) is not None


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def publish(unfinished: Path, folder: Path) -> None:
    """Renames; if another process was faster, its folder (of the same bytes) stays."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def draw_set(
    folder: Path,
    seed: int,
    train_ids: int,
    test_ids: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    for part in (TRAIN, QUERY, GALLERY):
        (folder / part).mkdir(parents=True)
    draw = partial(draw_identity, folder, seed, train_ids)
    total = train_ids + test_ids
    with parallel_map(workers) as mapped:
        for done, _ in enumerate(mapped(draw, range(1, total + 1)), start=1):
            if progress is not None:
                progress(done, total)


@contextmanager
def parallel_map(workers: int) -> Iterator[Callable[..., Iterable]]:
    """An ordered `map` over worker processes.

    They are forked: a fresh interpreter would import the caller's main module and torch again, which takes
    longer than the drawing. Forking beside torch's threads is safe here, for a child only calls NumPy and
    Pillow, which take no lock that those threads could hold, and finalises nothing of its parent's: a DALI
    pipeline would end threads that only the parent has. Where fork is not safe (macOS) or missing (Windows),
    this process draws alone.
    """
    if workers == 1 or sys.platform != "linux":
        yield map
        return
    gc.collect()  # what is garbage by now, a worker might collect before it has begun
    fork = get_context("fork")
    with warnings.catch_warnings(), ProcessPoolExecutor(workers, fork, initializer=begin_worker) as pool:
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        yield partial(pool.map, chunksize=2)


def begin_worker() -> None:
    """Keeps the parent's objects out of garbage collection, and has Linux end a worker whose parent was killed, for it
    would wait for work forever.
    """
    gc.freeze()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def draw_identity(folder: Path, seed: int, train_ids: int, pid: int) -> None:
    """Draws all images of one identity; for a test identity, the first one of each camera is the query."""
    person = draw_lots(np.random.default_rng([seed, IDENTITY, pid]))
    for camera, count in sightings(np.random.default_rng([seed, SIGHTINGS, pid])):
        for index in range(count):
            part = TRAIN if pid <= train_ids else GALLERY if index else QUERY
            rng = np.random.default_rng([seed, SHOT, pid, camera, index])
            photograph(person, camera, rng, folder / part / file_name(pid, camera, rng, index))
    if pid > train_ids:
        rng = np.random.default_rng([seed, DISTRACTOR, pid])
        camera = int(rng.integers(1, len(CAMERAS) + 1))
        # The number of the identity it was drawn with keeps the distractors' names apart.
        photograph(draw_lots(rng), camera, rng, folder / GALLERY / file_name(0, camera, rng, pid))


def sightings(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(camera, number of images) of one identity: three to six cameras, four to seven images each."""
    cameras = rng.choice(len(CAMERAS), size=rng.integers(3, len(CAMERAS) + 1), replace=False)
    return [(int(camera) + 1, int(rng.integers(4, 8))) for camera in sorted(cameras)]


def file_name(pid: int, camera: int, rng: np.random.Generator, index: int) -> str:
    """Market-1501's `pid_camera+sequence_frame_box.jpg`."""
    return f"{pid:04d}_c{camera}s1_{rng.integers(1_000_000):06d}_{index:02d}.jpg"


def photograph(person: Person, camera: int, rng: np.random.Generator, path: Path) -> None:
    """One person before one camera: a pose, a crop that is a little off, perhaps an obstacle, a JPEG file."""
    device = CAMERAS[camera - 1]
    canvas = background(camera - 1, rng)
    pose = strike_pose(rng, facing(device, rng))
    feet = (FRAME[0] * rng.normal(0.5, 0.045), FRAME[1] * rng.normal(0.955, 0.02))
    paint(canvas, person, pose, feet, scale=0.86 * FRAME[1] * device.scale * rng.normal(1, 0.04))
    occlude(canvas, rng)
    path.write_bytes(encoded(expose(device, canvas, rng), "JPEG", quality=int(rng.integers(55, 93))))


def contact_sheet(folder: Path, path: Path, identities: int = 12, per_camera: int = 2) -> None:
    """Saves one image of the training set's first identities: a row each, the cameras side by side.

    Raises:
        UserError: `path` names no kind of picture, or cannot be written; an image of the set cannot be read.
    """
    sheet = Image.new("RGB", (len(CAMERAS) * per_camera * WIDTH, identities * HEIGHT), "white")
    for row in range(identities):
        for camera in range(len(CAMERAS)):
            files = sorted((folder / TRAIN).glob(f"{row + 1:04d}_c{camera + 1}s*"))[:per_camera]
            for column, file in enumerate(files, start=camera * per_camera):
                sheet.paste(picture(file), (column * WIDTH, row * HEIGHT))
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"{path} has no suffix of a kind of picture: name it such as {path.with_suffix('.png').name}")
    write_whole(path, lambda file: file.write(encoded(sheet, kind)))
