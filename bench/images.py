"""Augmented images: stream, store in memory and store in a file beside Pillow and NumPy on JPEG files, as the published
code works. The file's pages are in the system's cache, where it has just been written: a disk may be slower.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from report import Row, timed
from torch import Tensor

from reid_fast.console import Console
from reid_fast.data.images import IMAGENET, ImageStream, View
from reid_fast.data.images.augmentation import Augmentation, draw
from reid_fast.data.images.normalisation import ERASE_FILL
from reid_fast.data.images.store import ImageStore, decode
from reid_fast.data.images.store_file import open_store_file
from reid_fast.data.synthetic import synthetic_folder

BATCH = 64


def images(smoke: bool) -> list[Row]:
    """Rows for the small recipe's images and the papers'."""
    paths = sorted((synthetic_folder() / "bounding_box_train").iterdir())[: 512 if smoke else 2560]
    runs = 1 if smoke else 3
    return [row for size, pad in (((64, 32), 3), ((256, 128), 10)) for row in _rows(paths, size, pad, runs)]


def _rows(paths: list[Path], size: tuple[int, int], pad: int, runs: int) -> list[Row]:
    view = View(pad=pad)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stream = ImageStream(paths, size, views=(view,), batch_size=BATCH, device=device)
    how = {"device": device, "threads": 2, "console": Console()}
    pixels, filling = timed(lambda: decode(paths, size, **how), 1)
    with TemporaryDirectory() as folder:
        _, making = timed(lambda: open_store_file(Path(folder), paths, size, **how), 1)
        file, opening = timed(lambda: open_store_file(Path(folder), paths, size, **how), runs)
    sources = {"stream": stream, "store": ImageStore(paths, pixels), "store file": file}
    index = np.arange(len(paths) // BATCH * BATCH)
    aug = draw(view, size, index, seed=0, epoch=0)
    theirs = np.stack([_pillow(paths[i], size, aug, i) for i in range(BATCH)])
    ours = [next(files(index[:BATCH], [aug[:BATCH]], BATCH))[0] for files in sources.values()]
    errors = [_grey_levels(images, theirs) for images in ours]
    between = max(_grey_levels(ours[0], images.permute(0, 2, 3, 1).cpu().numpy()) for images in ours[1:])
    if max(errors) > 1 or between > 0.01:
        raise SystemExit(f"images: off Pillow by {errors} grey levels on average, at {size}, apart by {between}")

    def published() -> None:
        with ThreadPoolExecutor(2) as pool:
            for start in index[::BATCH]:
                list(pool.map(lambda i: _pillow(paths[i], size, aug, i), range(start, start + BATCH)))

    _, slow = timed(published, 1)
    rows = []
    for (name, files), error in zip(sources.items(), errors, strict=True):
        count, fast = timed(lambda f=files: sum(len(images) for (images,) in f(index, [aug], BATCH)), runs)
        row = {"stage": f"images, {name}", "size": size, "images": count, "device": device.type}
        row |= {"ours": fast, "pillow": slow, "images_per_second": round(count / fast["seconds"])}
        row |= {"faster": round(slow["seconds"] / fast["seconds"], 2), "mean_difference_grey_levels": round(error, 3)}
        rows.append(row)
    rows[0] |= {"files_per_second_read": round(_read_rate(paths))}
    rows[1] |= {"filling": filling, "bytes": pixels.numel()}
    rows[2] |= {"filling": making, "opening": opening}
    return rows


def _grey_levels(images: Tensor, others: np.ndarray) -> float:
    """The mean difference of [n, 3, H, W] and [n, H, W, 3], before normalising."""
    return float(np.abs((images.permute(0, 2, 3, 1).cpu().numpy() - others) * np.array(IMAGENET.std) * 255).mean())


def _pillow(path: Path, size: tuple[int, int], aug: Augmentation, i: int) -> np.ndarray:
    """[H, W, 3]: the same augmentation, step by step."""
    height, width = size
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if aug.flip[i]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left = aug.crop[i]
    image = image.crop((left, top, left + width, top + height))  # black outside, like padding
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    top, left, height, width = aug.erase[i]
    pixels[top : top + height, left : left + width] = ERASE_FILL
    return pixels


def _read_rate(paths: list[Path]) -> float:
    """Files a second that are only read: what no decoder can pass."""
    start = time.perf_counter()
    for path in paths:
        path.read_bytes()
    return len(paths) / (time.perf_counter() - start)
