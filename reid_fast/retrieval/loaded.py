"""A trained encoder in use: images in, features out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import evaluate
from reid_fast.config import Config, InferenceSettings
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, ImageStream, Normalisation
from reid_fast.data.open import open_images
from reid_fast.data.sets import Paths, as_path, is_image, upright
from reid_fast.device import amp_dtype, pick_device
from reid_fast.errors import UserError
from reid_fast.labels.extract import extract
from reid_fast.models.archs import ARCHS, PLAIN, Options
from reid_fast.models.checkpoints import architecture_of, read_checkpoint
from reid_fast.models.encoder import Encoder
from reid_fast.models.fold import folded
from reid_fast.models.footprint import check_room
from reid_fast.models.weights import load_weights

if TYPE_CHECKING:
    from PIL import Image

One: TypeAlias = "str | Path | np.ndarray | Tensor | Image.Image"  # an image file, or pixels
Images: TypeAlias = "One | Iterable[One]"


@dataclass(frozen=True, eq=False)
class Embedded:
    """Features of image files.

    Attributes:
        features: [N, D] float32, L2-normalised.
        paths: the N files.
        left_out: unreadable ones, which have none.
    """

    features: Tensor
    paths: Paths
    left_out: tuple[Path, ...]


class LoadedEncoder:
    """An encoder in eval mode, on its device, with all that an image must go through before it.

    Attributes:
        size: (H, W) to which images are resized, in pixels.
        width: D, of a feature.
        mean, std: by which RGB values in [0, 1] are normalised.
        device: where it computes and where features lie.
    """

    def __init__(
        self,
        encoder: Encoder,
        description: dict[str, Any],
        device: torch.device,
        *,
        batch_size: int = 256,
        workers: int = 2,
        amp: bool = False,
    ) -> None:
        """
        Args:
            encoder: it is moved to the device.
            description: what the run folder's model.json says of it.
            device: where to compute.
            batch_size: images at once.
            workers: CPU threads that decode files.
            amp: compute in mixed precision.
        """
        self.size: tuple[int, int] = description["height"], description["width"]
        self.width, self.device, self.description = encoder.width, device, description
        self.mean, self.std = tuple(description["mean"]), tuple(description["std"])
        self.batch_size, self.workers = batch_size, workers
        self._amp = amp_dtype(device, amp, self.size[1])
        self._encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub
        self._network = folded(encoder)

    def __call__(self, images: Images) -> Tensor:
        """Encode images.

        Args:
            images: one, or an iterable of those: an image file, a picture of Pillow's, RGB pixels [H, W, 3] uint8 of
                any size (an array or a tensor; [N, H, W, 3] is N of them). Or a float tensor [N, 3, H, W] of images
                of `size`, normalised already: (RGB in [0, 1] - mean) / std.

        Returns:
            [N, D] float32, L2-normalised, on `device`; N is 1 for one image. Of files these are the very features of
            `evaluate` and `embed`. Pixels that are not of `size` are resized by torch as DALI resizes those of files
            (bicubic, antialiased), but for a grey level here and there.

        Raises:
            UserError: what is no image is named.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            return self._encoded(self._normalised_batches(images), len(images))
        items = list(_each(images))
        features = torch.empty(len(items), self.width, device=self.device)
        files = [row for row, item in enumerate(items) if isinstance(item, str | Path)]
        pixels = [row for row, item in enumerate(items) if not isinstance(item, str | Path)]
        if files:
            features[files] = self.embed([_file(items[row]) for row in files]).features
        if pixels:
            arrays = [_pixels(items[row], row) for row in pixels]
            features[pixels] = self._encoded(self._pixel_batches(arrays), len(arrays))
        return features

    def embed(
        self, sources: Sequence[str | Path], *, skip_bad_images: bool = False, console: Console | None = None
    ) -> Embedded:
        """Encode image files, wherever they lie.

        Args:
            sources: files, and folders, tables and tar files of them, see `reid_fast.data.open.open_images`.
            skip_bad_images: leave out unreadable images, instead of stopping.
            console: shows progress; None: there is none.

        Raises:
            UserError: no such source, an unreadable image.
        """
        console = console or Console(quiet=True)
        opened = open_images(
            [as_path(source) for source in sources],
            skip_bad_images=skip_bad_images,
            threads=self.workers,
            console=console,
        )
        return Embedded(self.encode_files(opened.paths, console), opened.paths, opened.left_out)

    def encode_files(self, paths: Sequence[Path], console: Console) -> Tensor:
        """[N, D] features of N files that have been checked, see `reid_fast.labels.extract`."""
        batch = min(self.batch_size, max(1, len(paths)))
        check_room(self._encoder, self.size, self.device, batch=batch, precision=self._amp)
        norm = Normalisation.of(self.description)
        stream = ImageStream(paths, self.size, batch_size=batch, device=self.device, threads=self.workers, norm=norm)
        with console.progress("extracting") as report:
            return extract(self._network, stream, batch_size=batch, amp=self._amp, fold=False, progress=report)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and of what images go through: another encoder has another."""
        digest = hashlib.blake2b(json.dumps(self.description, sort_keys=True).encode(), digest_size=16)
        for name, tensor in sorted(self._encoder.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def _encoded(self, batches: Iterator[Tensor], count: int) -> Tensor:
        features = torch.empty(count, self.width, device=self.device)
        done = 0
        for images in batches:
            with torch.autocast(self.device.type, self._amp, enabled=self._amp is not None):
                features[done : done + len(images)] = self._network(images)
            done += len(images)
        broken = (~features.isfinite().all(1)).nonzero()
        if len(broken):
            raise UserError(f"the feature of image {int(broken[0])} is not finite: the weights are broken")
        return features

    def _normalised_batches(self, images: Tensor) -> Iterator[Tensor]:
        if images.ndim != 4 or images.shape[1:] != (3, *self.size):
            wanted = ", ".join(map(str, ("N", 3, *self.size)))
            raise UserError(f"normalised images must be [{wanted}], not {list(images.shape)}")
        for some in images.split(self.batch_size):
            yield some.to(self.device, torch.float32, memory_format=torch.channels_last)

    def _pixel_batches(self, arrays: Sequence[Tensor]) -> Iterator[Tensor]:
        mean, std = (torch.tensor(numbers, device=self.device)[:, None, None] for numbers in (self.mean, self.std))
        for start in range(0, len(arrays), self.batch_size):
            images = torch.cat([self._resized(pixels) for pixels in arrays[start : start + self.batch_size]])
            yield ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def _resized(self, pixels: Tensor) -> Tensor:
        """[H, W, 3] uint8 -> [1, 3, h, w] float32 whole numbers 0..255."""
        image = pixels.to(self.device).permute(2, 0, 1)[None].float()
        if image.shape[2:] == self.size:
            return image
        return F.interpolate(image, self.size, mode="bicubic", antialias=True).round_().clamp_(0, 255)


def load_encoder(
    path: str | Path,
    device: str = "auto",
    *,
    size: tuple[int, int] | None = None,
    image_norm: Literal["imagenet", "half"] | None = None,
    batch_size: int = 256,
    workers: int = 2,
    amp: bool = False,
) -> LoadedEncoder:
    """Load a trained encoder for use.

    Args:
        path: a run folder, or a file of weights of any layout that `reid_fast.models.checkpoints` knows, whose
            architecture is told by its tensors. Where such a file has no neck, features are what is pooled.
        device: auto (CUDA where there is one), cpu, cuda or cuda:N.
        size: (H, W) of the images that a file of weights was trained with, 256×128 by default; a run knows its own.
        image_norm: likewise their normalisation, a key of `NORMALISATIONS`, by default "imagenet".
        batch_size: images at once.
        workers: CPU threads that decode files.
        amp: compute in mixed precision.

    Raises:
        UserError: there is no finished encoder, it is damaged, or its architecture is not known.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.name == "model.safetensors" and os.path.isfile(path.with_name("model.json")) else path
    if os.path.isfile(folder):
        encoder, description = _of_weights(folder, size or PLAIN.size, image_norm or "imagenet")
    elif size is not None or image_norm is not None:
        raise UserError(
            f"{folder} knows the size and the normalisation of its images: give them with files of weights only"
        )
    else:
        encoder, description = evaluate.load_encoder(folder)
    if missing := {"mean", "std"} - description.keys():
        raise UserError(f"model.json in {folder} lacks {', '.join(sorted(missing))}: write the model again by training")
    chosen = pick_device(device)
    return LoadedEncoder(encoder, description, chosen, batch_size=batch_size, workers=workers, amp=amp)


def configured_encoder(path: Path, config: InferenceSettings) -> LoadedEncoder:
    """`load_encoder` with the settings of a command."""
    size = None
    if config.height or config.width:
        size = config.height or PLAIN.size[0], config.width or PLAIN.size[1]
    return load_encoder(
        path,
        config.device,
        size=size,
        image_norm=config.image_norm,
        batch_size=config.batch_size,
        workers=config.workers,
        amp=config.amp,
    )


def _of_weights(
    file: Path, size: tuple[int, int], image_norm: Literal["imagenet", "half"]
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that a file of weights fills, in eval mode, and its description."""
    if image_norm not in NORMALISATIONS:
        raise UserError(f"the normalisation {image_norm} is not known: choose from {', '.join(NORMALISATIONS)}")
    tensors = read_checkpoint(file).tensors
    arch = architecture_of(tensors)
    if arch is None:
        raise UserError(
            f"{file} has the tensors of no known encoder: choose another file, or one of {', '.join(ARCHS)}"
        )
    height, width = size
    pooling: Literal["avg", "gem"] = "gem" if "pool.p" in tensors else "avg"
    config = Config(arch=arch, pooling_type=pooling, height=height, width=width, image_norm=image_norm)
    encoder = Encoder(arch, config.pooling_type, options=Options(size))
    load_weights(encoder, arch, str(file))
    return encoder.eval(), evaluate.describe(config)


def _each(images: Any) -> Iterable[One]:
    """The images of a batch; a single one is a batch of itself."""
    if isinstance(images, np.ndarray | Tensor):
        return images if images.ndim == 4 else [images]
    return [images] if isinstance(images, str | Path) or hasattr(images, "convert") else images  # Pillow's has that


def _file(path: Any) -> Path:
    file = as_path(path)
    if not is_image(file.name) or os.path.isdir(file):
        raise UserError(f"{path} is no image file: folders, tables and tar files are for `embed`")
    return file


def _pixels(image: Any, row: int) -> Tensor:
    """[H, W, 3] uint8 of an array, a tensor or a picture of Pillow's."""
    if hasattr(image, "convert"):
        image = np.array(upright(image))
    pixels = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if not isinstance(pixels, Tensor):
        raise UserError(f"image {row} is a {type(image).__name__}, not a file, pixels or a picture of Pillow's")
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        kind = str(pixels.dtype).removeprefix("torch.")
        raise UserError(f"image {row} is {list(pixels.shape)} {kind}: pixels must be [H, W, 3] uint8, RGB")
    return pixels
