"""L2-normalised features of a list of images."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from reid_fast.data.images import ImageFiles
from reid_fast.errors import UserError
from reid_fast.models.encoder import Encoder
from reid_fast.models.fold import folded
from reid_fast.ranks import ALONE, Ranks

BATCH = 256  # images at once, where nothing else is asked for


@torch.no_grad()
def extract(
    encoder: Encoder,
    files: ImageFiles,
    *,
    batch_size: int = BATCH,
    amp: torch.dtype | None = None,
    fold: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Encode every image of a list of files in eval mode.

    Args:
        encoder: a copy of it computes; it stays as it is.
        files: N images.
        batch_size: images at once; of an `ImageStream`, at most its own.
        amp: the autocast type; None computes in float32.
        fold: compute with BatchNorm within the convolutions, as `folded` does; the features differ in the last bits.
        progress: called with (images done, images in all).
        ranks: share the work, by whole batches: the features are those of one process, to the bit.

    Returns:
        [N, D] float32 L2-normalised rows, in the order of their paths, on the encoder's device; all of them on every
        rank.

    Raises:
        UserError: a feature is not finite; the image is named.
    """
    network = folded(encoder) if fold else deepcopy(encoder).eval()
    device = next(encoder.parameters()).device
    features = torch.empty(len(files.paths), encoder.width, device=device)
    shares = ranks.shares(len(features), batch_size)
    own = shares[ranks.rank]
    with ranks.agreed():
        done = own.start
        for images in files.plain(np.arange(own.start, own.stop), batch_size):
            with torch.autocast(device.type, amp, enabled=amp is not None):
                features[done : done + len(images)] = network(images)
            done += len(images)
            progress(done - own.start, own.stop - own.start)
    ranks.complete(features, shares)
    broken = (~features.isfinite().all(1)).nonzero()
    if len(broken):
        raise UserError(
            f"the feature of {files.paths[int(broken[0])]} is not finite ({len(broken)} in all): "
            "the weights are broken: train with a lower --lr or without --amp"
        )
    return features
