"""Picture files for the tests: with some structure, of several sizes, and broken."""

import numpy as np
from PIL import Image
from scipy import ndimage

PHOTOS = [(128, 64), (48, 24), (97, 31), (200, 90), (30, 20), (61, 61)]


def smooth_pictures(count, height, width, seed=0):
    """Pictures with some structure, as photographs have."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.uniform(0, 256, (5, 4, 3))
        fine = ndimage.zoom(coarse, (height / 5, width / 4, 1), order=1)
        yield (fine + rng.normal(0, 6, fine.shape)).clip(0, 255).astype(np.uint8)


def save_photos(folder):
    """JPEGs of several sizes, larger and smaller than what is asked for."""
    paths = []
    for i, (height, width) in enumerate(PHOTOS):
        (pixels,) = smooth_pictures(1, height, width, seed=i)
        paths.append(folder / f"photo{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=92)
    return paths


def break_files(folder, good):
    """Broken copies of `good`, by what is wrong with them."""
    content = good.read_bytes()
    broken = {
        "empty.jpg": b"",
        "garbage.jpg": bytes(range(256)) * 9,
        "head.jpg": content[:60],
        "half.jpg": content[: len(content) // 2],
        "text.jpg": b"<html>not found</html>",
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in broken]
