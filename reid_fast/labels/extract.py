"""Unit features of a list of pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from reid_fast.data.images.dali import ImageStream
from reid_fast.data.images.store import ImageStore
from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder


@torch.no_grad()
def extract(
    encoder: Encoder,
    stream: ImageStream | ImageStore,
    *,
    batch_size: int = 256,
    amp: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Encode every picture of a stream in eval mode.

    Args:
        encoder: its training mode is restored afterwards.
        stream: N pictures.
        batch_size: pictures at once; of an `ImageStream`, at most its own.
        amp: the autocast type; None computes in float32.
        progress: called with (pictures done, pictures in all).

    Returns:
        [N, D] float32 unit rows, in the order of the stream's paths, on the encoder's device.

    Raises:
        UserError: a feature is not finite; the picture is named.
    """
    training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    features = torch.empty(len(stream.paths), encoder.width, device=device)
    done = 0
    for images in stream.plain(np.arange(len(stream.paths)), batch_size):
        with torch.autocast(device.type, amp, enabled=amp is not None):
            features[done : done + len(images)] = encoder(images)
        done += len(images)
        progress(done, len(features))
    encoder.train(training)
    broken = (~features.isfinite().all(1)).nonzero()
    if len(broken):
        raise UserError(
            f"the feature of {stream.paths[int(broken[0])]} is not finite ({len(broken)} in all): "
            "the weights are broken; restart from an earlier checkpoint, with a lower --lr or without --amp"
        )
    return features
