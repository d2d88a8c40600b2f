"""Which clusters are worth a look, and which of their images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid_fast.data.sets import ImageSet
from reid_fast.labels.company import in_company

CLUSTERS = 4  # of each kind
IMAGES = 12  # of a cluster


@dataclass(frozen=True)
class Member:
    """An image of a cluster; identity 0 is the cluster's most frequent one, -1 unknown, camera -1 unknown."""

    path: Path
    identity: int
    camera: int


@dataclass(frozen=True)
class Cluster:
    """A pseudo label, and some of its images.

    Attributes:
        label: its number.
        images: how many it has.
        cameras: how many have seen it, 0 where they are unknown.
        identities: images of each known identity, the most frequent first.
        members: at most `IMAGES` of them, the most frequent identity first.
    """

    label: int
    images: int
    cameras: int
    identities: tuple[int, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Clusters:
    """The largest clusters of a labelling: pure and mixed where identities are known, else all in `unknown`."""

    pure: tuple[Cluster, ...]
    mixed: tuple[Cluster, ...]
    unknown: tuple[Cluster, ...]
    pure_count: int
    mixed_count: int


def pick_clusters(labels: np.ndarray, images: ImageSet) -> Clusters:
    """The largest clusters; of equal ones that of the lower label.

    Args:
        labels: [N] int64 pseudo labels, -1 or alone in a class: in no cluster.
        images: the N images, pid -1 where unknown.
    """
    inside = np.flatnonzero(in_company(labels))
    order = inside[np.argsort(labels[inside], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    groups.sort(key=lambda rows: (-len(rows), int(labels[rows[0]])))
    kinds: dict[str, list[np.ndarray]] = {"pure": [], "mixed": [], "unknown": []}
    for rows in groups:
        known = images.pids[rows][images.pids[rows] >= 0]
        kinds["unknown" if not len(known) else "pure" if (known == known[0]).all() else "mixed"].append(rows)

    def some(kind: str, most: int = CLUSTERS) -> tuple[Cluster, ...]:
        return tuple(_cluster(int(labels[rows[0]]), rows, images) for rows in kinds[kind][:most])

    unknown = 0 if kinds["pure"] or kinds["mixed"] else 2 * CLUSTERS
    return Clusters(some("pure"), some("mixed"), some("unknown", unknown), len(kinds["pure"]), len(kinds["mixed"]))


def _cluster(label: int, rows: np.ndarray, images: ImageSet) -> Cluster:
    pids, cams = images.pids[rows], images.cams[rows]
    names, counts = np.unique(pids[pids >= 0], return_counts=True)
    by_frequency = np.argsort(-counts, kind="stable")
    rank = {int(names[place]): number for number, place in enumerate(by_frequency)} | {-1: -1}
    identities = [rank[pid] for pid in pids.tolist()]
    members = [
        Member(images.paths[rows[at]], identities[at], int(cams[at])) for at in _spread(identities, cams.tolist())
    ]
    members.sort(key=lambda one: (one.identity < 0, one.identity, one.camera))
    counts = counts[by_frequency]
    return Cluster(label, len(rows), len(np.unique(cams[cams >= 0])), tuple(counts.tolist()), tuple(members))


def _spread(identities: list[int], cams: list[int]) -> list[int]:
    """At most `IMAGES` places, in turns from every identity and, of each, from every camera: what differs shows first.

    Args:
        identities: of n images, by their frequency: where a turn is too long, the most frequent ones are in it.
        cams: their cameras.
    """
    seen: Counter[tuple[int, int]] = Counter()
    by_camera = []
    for place, (identity, cam) in enumerate(zip(identities, cams, strict=True)):
        by_camera.append((seen[identity, cam], cam, place, identity))
        seen[identity, cam] += 1
    shown: Counter[int] = Counter()
    by_identity = []
    for _, _, place, identity in sorted(by_camera):
        by_identity.append((shown[identity], identity < 0, identity, place))
        shown[identity] += 1
    return [place for *_, place in sorted(by_identity)[:IMAGES]]
