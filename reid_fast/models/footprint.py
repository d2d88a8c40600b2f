"""What images take of memory on their way through an encoder, told without computing it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reid_fast.device import free_bytes
from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder

_GIB = 2**30
_MOST = 1000  # times its own bytes an image takes, at most; about 200 in the encoders that there are
_TWO = 2  # BatchNorm takes no fewer images in training


@dataclass(frozen=True)
class Footprint:
    """Bytes that an image takes at least, in float32.

    Attributes:
        trained: what training keeps of it for the gradient.
        extracted: what goes into and comes out of the layer that has most.
    """

    trained: int
    extracted: int

    @classmethod
    def of(cls, encoder: Encoder, size: tuple[int, int]) -> Footprint:
        """
        Args:
            encoder: it stays as it is.
            size: (H, W) of images in pixels.
        """
        network = deepcopy(encoder).to("meta").train()
        own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        kept: dict[int, Any] = {}
        most = 0

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
            return tensor

        def pass_through(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            nonlocal most
            most = max(most, sum(x.nbytes for x in (*given, made)))

        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(pass_through)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.pooled(torch.empty(_TWO, 3, *size, device="meta"))
        trained = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        return cls(trained // _TWO, most // _TWO)


def check_room(
    encoder: Encoder,
    size: tuple[int, int],
    device: torch.device,
    *,
    batch: int,
    trained: bool = False,
    precision: torch.dtype | None = None,
    beside: Mapping[str, float] | None = None,
) -> None:
    """Refuse what cannot fit into the free memory of a device, by what it takes at least.

    Args:
        encoder: what images go through.
        size: (H, W) of images in pixels.
        device: where.
        batch: images at once.
        trained: whether a gradient is wanted.
        precision: the autocast type; None: float32.
        beside: bytes of other things that are there at the same time, by the settings that they follow from.

    Raises:
        UserError: there is too little; the setting that takes most is named.
    """
    free, image = free_bytes(device), 4 * 3 * math.prod(size)
    asked = {**(beside or {}), "--batch-size, --height and --width": batch * image}
    if sum(asked.values()) + batch * image * _MOST > free:
        found = Footprint.of(encoder, size)
        layers = found.trained if trained else found.extracted
        asked["--batch-size, --height and --width"] += batch * layers * (1 if precision is None else 0.5)
    if sum(asked.values()) > free:
        most = max(asked, key=lambda name: asked[name])
        raise UserError(
            f"{most} need {asked[most] / _GIB:,.1f} GiB of memory at least, and of that of {device} "
            f"{free / _GIB:,.1f} GiB are free: choose less"
        )
