"""What tests feed their subjects: formulas with golden values, planted clusters, image files whole and broken."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

GOLDEN = Path(__file__).parent / "golden/pseudo_labels_200ids.npz"
# The settings of the smallest runs, for `argv`.
TINY = {
    "recipe": "small",
    "height": 32,
    "width": 16,
    "batch_size": 16,
    "k1": 8,
    "k2": 3,
    "device": "cpu",
    "dataset": "market1501",
}
MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MARKET = (
    ["0007_c2s1_000001_00.jpg", "0002_c1s1_000001_00.jpg", "0007_c6s3_000009_01.jpg"],
    ["0001_c1s1_000001_00.jpg"],
    ["0001_c2s1_000001_00.jpg", "0000_c3s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"],
)
PHOTOS = [(128, 64), (48, 24), (97, 31), (200, 90), (30, 20), (61, 61)]


def sampled(values, *chosen):
    """Parameters of a test: those that are chosen, and the others for `--thorough`."""
    thorough = {"marks": pytest.mark.thorough}
    return [
        value if value in chosen else pytest.param(*(value if isinstance(value, tuple) else [value]), **thorough)
        for value in values
    ]


def argv(**settings):
    """A command line: batch_size=16 -> --batch-size 16, amp=True -> --amp."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def assert_settings(config, expected):
    """Compare settings with a text: "iters 200, eps 0.6"."""
    wanted = dict(pair.split(" ") for pair in expected.split(", "))
    assert {name: str(getattr(config, name)) for name in wanted} == wanted


def rows_of(folder):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refused(capsys, run, *flags):
    """Run a command line that must end in exit code 2, and return its one sentence."""
    with pytest.raises(SystemExit) as stop:
        run([str(flag) for flag in flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    return line


def phi(n, s, width=8):
    """Φ(n, s)[i, j] = sin(s + 1.7 i + 0.9 j + 0.31 i j): the inputs of the golden values."""
    i, j = torch.arange(n)[:, None].double(), torch.arange(width).double()
    return torch.sin(s + 1.7 * i + 0.9 * j + 0.31 * i * j).float()


def unit_phi(n, s, width=8):
    return F.normalize(phi(n, s, width))


def near(actual, expected, atol=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.tensor(expected), atol=atol, rtol=1e-5, check_device=False
    )


def planted(n, width, seed=0, per_cluster=12, noise=0.1):
    """Unit rows in loose clusters, with a share of rows that belong nowhere."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // per_cluster), width))
    rows = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.normal(size=(n, width))
    stray = rng.random(n) < noise
    rows[stray] = rng.normal(size=(stray.sum(), width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def waves():
    """The clustering test computed by the published code: N = 60, d = 16, ten groups of six."""
    i, j = np.arange(60)[:, None], np.arange(16)
    rows = np.sin(1.3 * (i // 6 + 1) * (j + 1)) + 0.9 * np.cos(0.7 + 2.1 * i + 1.1 * j + 0.37 * i * j)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def smooth_images(count, height, width, seed=0):
    """Images with some structure, as photographs have."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.uniform(0, 256, (5, 4, 3))
        fine = ndimage.zoom(coarse, (height / 5, width / 4, 1), order=1)
        yield (fine + rng.normal(0, 6, fine.shape)).clip(0, 255).astype(np.uint8)


def save_photos(folder):
    """JPEGs of several sizes, larger and smaller than what is asked for."""
    paths = []
    for i, (height, width) in enumerate(PHOTOS):
        (pixels,) = smooth_images(1, height, width, seed=i)
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


def encoded(kind="JPEG"):
    """The bytes of a small file of this kind."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


JPEG = encoded()


def write(path, content=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


TAR_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(path, files, form="ustar"):
    """Write a tar file of these names and contents; None makes a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=TAR_FORMATS[form], errors="surrogateescape") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def write_splits(root, splits=MARKET, folders=MARKET_FOLDERS):
    """Files of these names in three folders: by default, a small Market-1501 with junk and a distractor."""
    for folder, names in zip(folders, splits, strict=True):
        for name in names:
            write(root / folder / name)
    return root


def records(images):
    """(name, identity, camera) of each image of a split."""
    return [(p.name, *ids) for p, *ids in zip(images.paths, images.pids.tolist(), images.cams.tolist(), strict=True)]
