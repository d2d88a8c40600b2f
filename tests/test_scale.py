"""What an epoch does with all images at once, in memory that grows with their number and no faster.

`IMAGES=1000000 python -m pytest tests/test_scale.py` says the same of a million images. There are 24 of an identity, so
that already at 100,000 an array of images × images or images × clusters exceeds what every stage may take.
"""

import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory import peak_bytes

import reid_fast
from reid_fast.clustering import BELOW_ONE
from reid_fast.data.images.sampler import class_uniform, epoch_plan, more_cameras, other_cameras
from reid_fast.labels.agree import refine, self_paced
from reid_fast.labels.company import in_company
from reid_fast.memories import CameraProxies, InstanceMemory, PrototypeMemory, Update
from reid_fast.methods.rcl import Aggregation, members_by_cluster
from reid_fast.metrics import label_scores

N = int(os.environ.get("IMAGES", "100000")) // 96 * 96
PER_IDENTITY, D, B, CAMERAS = 24, 64, 64, 50
FIXED = 100 << 20  # bytes, for threads, slices of logits and what libraries keep


class Images(NamedTuple):
    features: torch.Tensor  # [N, D]
    neighbours: tuple[torch.Tensor, torch.Tensor]
    identity: np.ndarray
    cams: np.ndarray
    labels: np.ndarray  # as of DBSCAN, a fifth of them outliers
    tight: np.ndarray  # where one identity in ten falls apart


@pytest.fixture(scope="module")
def images():
    """Four identities look alike, others lie far apart: neighbours are found without a search."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randperm(N, generator=generator).view(-1, 96)
    features, similarity = torch.empty(N, D), torch.empty(N, 30)
    index, identity = torch.empty(N, 30, dtype=torch.int32), torch.empty(N, dtype=torch.int64)
    for own in place.split(256):
        centres = torch.randn(len(own), 1, D, generator=generator) + torch.randn(len(own), 4, D, generator=generator)
        rows = centres.repeat_interleave(PER_IDENTITY, 1) + 0.5 * torch.randn(*own.shape, D, generator=generator)
        rows = F.normalize(rows, dim=2)
        products = rows @ rows.mT
        products.diagonal(dim1=1, dim2=2).fill_(1)
        best, column = products.topk(30, dim=2)
        features[own], similarity[own] = rows, best
        index[own] = own[:, None].expand(-1, 96, -1).gather(2, column).int()
    identity[place.flatten()] = torch.arange(N) // PER_IDENTITY
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(N) < 0.2, -1, identity.numpy())
    tight = np.where((labels % 10 == 0) & (rng.random(N) < 0.5), N + labels, labels)
    tight = np.unique(tight, return_inverse=True)[1] - 1
    return Images(features, (index, similarity), identity.numpy(), rng.integers(CAMERAS, size=N), labels, tight)


def cluster(images):
    graph = reid_fast.jaccard_graph(images.features, neighbours=images.neighbours)
    labels = reid_fast.dbscan(graph)
    scores = label_scores(labels, images.identity)
    assert min(scores.values()) > 0.99
    assert in_company(labels).mean() > 0.99


def compare(images):
    labels, tight = images.labels, images.tight
    assert 0 < self_paced(labels, tight, images.identity)[1] <= 1
    graph = reid_fast.jaccard_graph(images.features, max_distance=BELOW_ONE, neighbours=images.neighbours)
    assert len(np.unique(refine(labels, tight, graph))) > len(np.unique(labels))


def plan(images):
    for rule in (other_cameras, more_cameras, class_uniform):
        shape = {"batch_size": 256, "num_instances": 16, "iters": 200}
        drawn = epoch_plan(images.labels, images.cams, **shape, seed=1, epoch=0, rule=rule)
        assert len(np.unique(drawn)) > 200 * 256 / 3


def batch(images):
    rows = torch.from_numpy(np.flatnonzero(images.labels >= 0)[:: N // B][:B])
    x = F.normalize(images.features[rows] + 0.01).requires_grad_()
    return x, rows, torch.from_numpy(images.labels)[rows], torch.from_numpy(images.cams)[rows]


def finite(x, loss):
    loss.backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def prototypes(images):
    memory, (x, _, labels, _) = PrototypeMemory(D), batch(images)
    memory.fill(images.features, images.labels)
    finite(x, memory.step(x, labels, 0.05, Update(0.1)))
    targets = F.one_hot(labels, len(memory.rows)).float()
    finite(x, memory.step(x, labels, 0.05, Update(0.1, "hard"), targets=targets))


def instances(images):
    memory, (x, rows, _, _) = InstanceMemory(D), batch(images)
    memory.fill(images.features.clone())
    memory.relabel(np.arange(N))  # the first epochs leave most images alone
    finite(x, memory.step(x, rows, 0.05, 0.2, focal=4.0))


def proxies(images):
    memory, (x, _, labels, cams) = CameraProxies(D), batch(images)
    memory.fill(images.features, images.labels, images.cams)
    assert len(memory.rows) > 0.6 * N
    finite(x, sum(memory.step(x, labels, cams, 0.07, negatives=50, intra=True, inter=0.5, momentum=0.2).values()))


def proxies_of_many_cameras(images):
    memory, cams = CameraProxies(D), np.arange(N)
    memory.fill(images.features, images.labels, cams)
    rows = memory.rows_of(torch.arange(N), torch.from_numpy(images.labels))
    assert (rows >= 0).sum() == len(memory.rows)


def attention(images):
    order, offsets = (torch.from_numpy(part) for part in members_by_cluster(images.labels, 0))
    weights, means = Aggregation(D).requires_grad_(False)(images.features[order], offsets)
    assert weights.sum() == pytest.approx(len(means), rel=1e-3)


@pytest.mark.parametrize(
    ("stage", "bytes_an_image"),
    [
        (cluster, 1500),
        (compare, 3000),
        (plan, 200),
        (prototypes, 1000),
        (instances, 4 * 4 * D),
        (proxies, 8 * 4 * D),
        (proxies_of_many_cameras, 4 * 4 * D),
        (attention, 2 * 4 * 8 * D * 3),  # queries and keys of eight heads, and what makes them
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_memory_grows_with_the_images(images, stage, bytes_an_image):
    needed = peak_bytes(lambda: stage(images))
    print(f"{stage.__name__}: {(needed - FIXED) / N:.0f} bytes an image")
    assert needed < FIXED + bytes_an_image * N
