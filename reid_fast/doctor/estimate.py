"""What a data set would need: memory, disk and, measured for a moment, time."""

from __future__ import annotations

import time
from collections.abc import Callable

_GIB = 2**30
_GRAPH = 750  # bytes a row of the graph's stages before there is a graph, and
_EDGES = 12 * 60  # of the graph itself where a row has 60 neighbours in it: docs/clustering.md
_ROWS = 4000  # that a search is timed on


def needs(
    images: int,
    size: tuple[int, int],
    arch: str,
    *,
    k1: int = 30,
    batch: int = 256,
    iters: int = 200,
    measure: bool = False,
) -> dict[str, float | str]:
    """What training on N images takes.

    Args:
        images: N.
        size: (H, W) in pixels.
        arch: the encoder, a key of `ARCHS`.
        k1: neighbours of an image.
        batch: images of a step.
        iters: steps of an epoch.
        measure: time the encoder and the search for some seconds, on the GPU if there is one.

    Returns:
        By name: "decoded_gib" of held images; "labels_gib" of features, neighbours and graph at once; "checkpoint_gib"
        of last.pt, and of as much memory on the host; "instances_gib" more where a method remembers every image;
        "export_gib" of the encoder's file; with `measure` also "epoch_minutes" without decoding, and "measured_on".

    Raises:
        UserError: an unknown encoder, or one that takes no images of this size.
    """
    import torch

    from reid_fast.models.archs import Options
    from reid_fast.models.encoder import Encoder

    with torch.device("meta"):
        encoder = Encoder(arch, options=Options(size))
    weights = sum(weight.numel() for weight in encoder.parameters())
    rest = sum(buffer.numel() for buffer in encoder.buffers())
    D = encoder.width
    found: dict[str, float | str] = {
        "decoded_gib": images * 3 * size[0] * size[1] / _GIB,
        # Features in fp32 and packed to half of that, the search's buffers, the ranking, the graph.
        "labels_gib": images * (6 * D + 24 * k1 + 8 * k1 + _GRAPH + _EDGES) / _GIB,
        "checkpoint_gib": 4 * (3 * weights + rest) / _GIB,  # weights, and Adam's two means of each
        "instances_gib": 4 * images * D / _GIB,
        "export_gib": 4 * (weights + rest) / _GIB,
    }
    return found | _measured(images, size, arch, D, k1, batch * iters) if measure else found


def _measured(
    images: int, size: tuple[int, int], arch: str, width: int, k1: int, trained: int
) -> dict[str, float | str]:
    import torch

    import reid_fast
    from reid_fast.models.archs import Options
    from reid_fast.models.encoder import Encoder
    from reid_fast.models.fold import folded

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    B = 64 if cuda else 8
    encoder = Encoder(arch, options=Options(size)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
    network = folded(encoder)
    batch = torch.rand(B, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    rows = torch.nn.functional.normalize(torch.randn(min(images, _ROWS), width, device=device))

    def extract() -> None:
        with torch.no_grad():
            network(batch)

    def train() -> None:
        encoder.train()(batch).sum().backward()

    extracted, trained_one = (_seconds(work, cuda) / B for work in (extract, train))
    search = _seconds(lambda: reid_fast.knn(rows, min(k1, len(rows))), cuda) * (images / len(rows)) ** 2
    seconds = images * extracted + trained * trained_one + search
    where = torch.cuda.get_device_name() if cuda else f"processor, {torch.get_num_threads()} threads"
    return {"epoch_minutes": seconds / 60, "measured_on": f"{where}, float32"}


def _seconds(work: Callable[[], object], cuda: bool) -> float:
    """The faster of two calls behind a first one."""
    import torch

    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
