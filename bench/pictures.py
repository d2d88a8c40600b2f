"""Pictures from JPEG files to augmented tensors: DALI beside Pillow and NumPy, as the published code works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import Row, timed

from reid_fast.data.augment import Augmentation, View, draw
from reid_fast.data.dali import ERASE_FILL, MEAN, STD, ImageStream
from reid_fast.data.synthetic import synthetic_folder

BATCH = 64


def pictures(smoke: bool) -> list[Row]:
    """Rows for the small recipe's pictures and the papers'."""
    paths = sorted((synthetic_folder() / "bounding_box_train").iterdir())[: 512 if smoke else 2560]
    return [_stream(paths, size, pad, 1 if smoke else 3) for size, pad in (((64, 32), 3), ((256, 128), 10))]


def _stream(paths: list[Path], size: tuple[int, int], pad: int, runs: int) -> Row:
    view = View(pad=pad)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stream = ImageStream(paths, size, views=(view,), batch_size=BATCH, device=device)
    starts = range(0, len(paths) - BATCH + 1, BATCH)

    def parameters() -> Iterator[tuple[np.ndarray, list[Augmentation]]]:
        for start in starts:
            index = np.arange(start, start + BATCH)
            yield index, [draw(view, size, index, seed=0, epoch=0)]

    index, (first,) = next(parameters())
    (ours,) = next(iter(stream([(index, [first])])))
    theirs = np.stack([_pillow(paths[i], size, first, i) for i in range(BATCH)])
    error = np.abs((ours.permute(0, 2, 3, 1).cpu().numpy() - theirs) * np.array(STD) * 255).mean()
    if error > 1:
        raise SystemExit(f"pictures: DALI and Pillow differ by {error:.2f} grey levels on average at {size}")

    count, fast = timed(lambda: sum(len(images) for (images,) in stream(parameters())), runs)

    def published() -> None:
        with ThreadPoolExecutor(2) as pool:
            for index, (aug,) in parameters():
                list(pool.map(lambda i, aug=aug: _pillow(paths[i], size, aug, i % BATCH), index))

    _, slow = timed(published, 1)
    return {
        "stage": "pictures", "size": size, "images": count, "device": device, "ours": fast, "pillow": slow,
        "images_per_second": round(count / fast["seconds"]),
        "faster": round(slow["seconds"] / fast["seconds"], 2),
        "mean_difference_grey_levels": round(float(error), 3),
        "files_per_second_read": round(_read_rate(paths)),
    }  # fmt: skip


def _pillow(path: Path, size: tuple[int, int], aug: Augmentation, i: int) -> np.ndarray:
    """[H, W, 3]: the same augmentation, step by step."""
    height, width = size
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if aug.flip[i]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left = aug.crop[i]
    image = image.crop((left, top, left + width, top + height))  # black outside, like padding
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    top, left, height, width = aug.erase[i]
    pixels[top : top + height, left : left + width] = ERASE_FILL
    return pixels


def _read_rate(paths: list[Path]) -> float:
    """Files a second that are only read: what no decoder can pass."""
    start = time.perf_counter()
    for path in paths:
        path.read_bytes()
    return len(paths) / (time.perf_counter() - start)
