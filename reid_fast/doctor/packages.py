"""The packages: which are there, in which version, and whether they do what they are here for."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reid_fast.doctor.finding import Finding, probed

_REQUIRED = {  # module: distribution
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "tyro": "tyro",
    "rich": "rich",
}
_OPTIONAL = {  # module: distribution, the extra that has it, what it is for
    "infomap": ("infomap", "infomap", "--cluster infomap"),
    "pyarrow": ("pyarrow", "parquet", "tables of images as .parquet"),
    "yaml": ("pyyaml", "yaml", "--config FILE.yaml"),
    "tensorboard": ("tensorboard", "tensorboard", "--tensorboard"),
    "wandb": ("wandb", "wandb", "--wandb"),
    "onnx": ("onnx", "onnx", "export --to onnx"),
    "onnxscript": ("onnxscript", "onnx", "export --to onnx"),
    "onnxruntime": ("onnxruntime", "onnx", "export --to onnx"),
}


def parts() -> list[Finding]:
    """Every package that the engine uses, and what those with compiled code of their own do."""
    found = [Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}", promised=True)]
    found.append(Finding("reid-fast", "ok", _version(["reid-fast"]), promised=True))
    for module, package in _REQUIRED.items():
        found.append(
            probed(package, lambda m=module, p=package: _imported(m, [p]), f"pip install {package}", promised=True)  # type: ignore[misc]
        )
    found.append(
        probed("_C", _extension, "install again from the sources, with a C++17 compiler: pip install .", promised=True)
    )
    linux = sys.platform == "linux"
    found.append(probed("DALI", _dali, "pip install nvidia-dali-cuda120", promised=linux))
    found.append(probed("triton", _triton, "pip install 'triton>=3.2'", promised=linux))
    found.append(probed("faiss", _faiss, "optional, for indices on disk: pip install faiss-cpu"))
    found.append(probed("CuPy", _cupy, "optional, for graphs on the GPU: pip install 'reid-fast[gpu]'"))
    for module, (package, extra, use) in _OPTIONAL.items():
        way_out = f"optional, for {use}: pip install 'reid-fast[{extra}]'"
        found.append(probed(package, lambda m=module, p=package: _imported(m, [p]), way_out))  # type: ignore[misc]
    return found


def _version(packages: Sequence[str]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "version unknown"


def _imported(module: str, packages: Sequence[str]) -> str:
    import_module(module)
    return _version(packages)


def _extension() -> str:
    from reid_fast.clustering.compiled import has_cuda, similarity_kernels

    where = "CPU and CUDA" if has_cuda() else "CPU alone (built without nvcc: features of a GPU are clustered here)"
    return f"{where}; similarity kernels: {', '.join(similarity_kernels())}"


def _triton() -> str:
    found = _imported("triton", ["triton"])
    import torch

    if torch.cuda.is_available():
        return f"{found}; kernels are compiled when they are first used"
    return f"{found}; without a GPU no kernel is used (TRITON_INTERPRET=1 interprets them, for tests)"


def _dali() -> str:
    """Decode a JPEG as training does, and compare it with Pillow's."""
    import numpy as np
    from PIL import Image

    from reid_fast.data.images import ImageStream

    coarse = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.jpg"
        Image.fromarray(coarse).resize((48, 96), Image.Resampling.BICUBIC).save(path, quality=92)
        (images,) = ImageStream([path], (96, 48), threads=1, norm=None).plain(np.arange(1), 1)
        wanted = np.asarray(Image.open(path), dtype=np.float32)
    apart = np.abs(images[0].permute(1, 2, 0).numpy().astype(np.float32) - wanted).mean()
    if not apart < 4:
        raise RuntimeError(f"a JPEG decoded by it is {apart:.1f} of 255 levels from Pillow's")
    found = _version(["nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110"])
    return f"{found}; decodes as Pillow does, to {apart:.2f} of 255 levels"


def _faiss() -> str:
    import faiss
    import numpy as np

    rows = np.eye(4, 8, dtype=np.float32)
    index = faiss.IndexFlatIP(8)
    index.add(rows)
    if index.search(rows, 1)[1][:, 0].tolist() != [0, 1, 2, 3]:
        raise RuntimeError("it does not find a row by itself")
    return f"{_version(['faiss-gpu', 'faiss-cpu'])}; {faiss.get_num_gpus()} GPUs"


def _cupy() -> str:
    found = _imported("cupy", ["cupy-cuda12x", "cupy-cuda13x", "cupy"])
    import cupy

    if not cupy.cuda.is_available():
        return f"{found}; no GPU to use it on"
    if int(cupy.arange(5).sum()) != 10:
        raise RuntimeError("it cannot add on the GPU")
    return f"{found}; computes on the GPU"
