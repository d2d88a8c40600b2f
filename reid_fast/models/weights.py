"""Pretrained weights: from a file, or ImageNet's from torch.hub's cache."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from reid_fast.errors import UserError
from reid_fast.models.archs import ARCHS
from reid_fast.models.encoder import Encoder


def load_weights(encoder: Encoder, arch: str, weights: str) -> None:
    """Initialise the backbone of `encoder` in place.

    Args:
        encoder: of architecture `arch`.
        weights: "none" leaves it random, "imagenet" takes torchvision's first ImageNet weights (downloaded once into
            torch.hub's cache), anything else is the path of a .pth or .safetensors file with torchvision's names.

    Raises:
        UserError: no such file, no weights published, no network, or a file whose tensors do not fit (named).
    """
    if weights == "none":
        return
    source = _imagenet_file(arch) if weights == "imagenet" else Path(weights)
    if not source.is_file():
        raise UserError(f"--weights {weights}: there is no such file")
    _fit(encoder.backbone, _read(source), source)


def _imagenet_file(arch: str) -> Path:
    url = ARCHS[arch].weights
    if url is None:
        raise UserError(f"no ImageNet weights are published for --arch {arch}: use --weights none or a file")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as error:
            raise UserError(
                f"could not download {url} ({error}): fetch it elsewhere and put it at {path}, "
                "or train from scratch with --weights none"
            ) from None
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            # Training scripts wrap the tensors in one of these and DataParallel prefixes each name.
            tensors = next((tensors[key] for key in ("state_dict", "model") if key in tensors), tensors)
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    except Exception as error:  # each of the readers has its own zoo of exceptions
        reason = str(error).split("\n")[0]
        raise UserError(f"--weights {path} is not a file of PyTorch or safetensors weights ({reason})") from None


def _fit(backbone: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    own = backbone.state_dict()
    # A classifier head is of no use here; batch counters are missing from files older than PyTorch 0.4.1.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in own]
    reshaped = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    problems = [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise UserError(f"--weights {source} does not fit this --arch ({'; '.join(problems)})")
    backbone.load_state_dict(tensors, strict=False)
