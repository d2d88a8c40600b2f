"""Which images make a batch: P identities with K instances each, drawn for a whole epoch at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reid_fast.errors import UserError

_STREAM = 0x5A4D504C  # keeps these draws apart from every other use of the run's seed

# (an identity's images [n], their cameras [n] or None, K, generator) -> those to take, in the order of the batch
Rule = Callable[[np.ndarray, "np.ndarray | None", int, np.random.Generator], np.ndarray]


def other_cameras(own: np.ndarray, cams: np.ndarray | None, K: int, rng: np.random.Generator) -> np.ndarray:
    """An anchor, then K-1 images from other cameras than its own where there are any ("random multiple gallery
    sampler" of the published code of SpCL and Cluster Contrast). A sole image comes alone.
    """
    anchor = rng.integers(len(own))
    others = own[cams != cams[anchor]] if cams is not None else own[:0]
    if len(others) == 0:
        others = np.delete(own, anchor)
    if len(others) == 0 or K == 1:
        return own[anchor : anchor + 1]
    # The published code compares with K, not K-1: exactly K-1 candidates are drawn with replacement too.
    return np.append(own[anchor], rng.choice(others, K - 1, replace=len(others) < K))


def more_cameras(own: np.ndarray, cams: np.ndarray | None, K: int, rng: np.random.Generator) -> np.ndarray:
    """K images from as many cameras as there are, one of each, then from the rest (ICE); without cameras, any K."""
    by_camera = [] if cams is None else [rng.choice(own[cams == cam]) for cam in np.unique(cams)]
    if len(by_camera) >= K:
        return rng.choice(by_camera, K, replace=False)
    rest = np.setdiff1d(own, by_camera)
    if len(rest) == 0:
        return rng.choice(own, K)
    missing = K - len(by_camera)
    more = rng.choice(rest, missing, replace=len(rest) < missing)
    return np.concatenate([by_camera, more]).astype(np.int64)


def class_uniform(own: np.ndarray, cams: np.ndarray | None, K: int, rng: np.random.Generator) -> np.ndarray:
    """K images, distinct where there are as many, else from K copies of all of them (CAP)."""
    return rng.permutation(own if len(own) >= K else np.tile(own, K))[:K]


def epoch_plan(
    labels: np.ndarray,
    cams: np.ndarray,
    *,
    batch_size: int,
    num_instances: int,
    iters: int,
    seed: int,
    epoch: int,
    use_cams: bool = True,
    rule: Rule = other_cameras,
) -> np.ndarray:
    """Draw the batches of one epoch.

    A pass visits every identity once, in random order; passes follow one another, and the incomplete batch at the end
    of each is dropped, unless a pass fills no batch at all: then as many passes as do are taken together, and a batch
    has images of an identity more than once. The draw depends on the arguments alone, so a resumed run draws the same
    batches.

    Args:
        labels: [N] int pseudo labels; -1 takes no part.
        cams: [N] int cameras.
        batch_size: B.
        num_instances: K, images per identity.
        iters: batches; 0: as many as the labelled images fill.
        seed, epoch: the source of randomness.
        use_cams: let the rule see the cameras.
        rule: which images of an identity to take.

    Returns:
        [iters, B] int64 image indices.

    Raises:
        UserError: no image has a label.
    """
    rng = np.random.default_rng([_STREAM, seed, epoch])
    members = _members_by_label(labels)
    iters = iters or max(1, int((labels >= 0).sum()) // batch_size)
    if not members:
        raise UserError("no image is in a cluster: let clusters form with another --eps")
    plan = np.empty((iters, batch_size), dtype=np.int64)
    filled, kept = 0, np.empty(0, dtype=np.int64)  # of passes that filled no batch
    while filled < iters:
        missing = (iters - filled) * batch_size - len(kept)
        groups = [kept]
        for label in rng.permutation(len(members)):
            groups.append(rule(members[label], cams[members[label]] if use_cams else None, num_instances, rng))
            missing -= len(groups[-1])
            if missing <= 0:  # the rest of the last pass would not be looked at
                break
        order = np.concatenate(groups)
        batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)[: iters - filled]
        kept = order if len(batches) == 0 else order[:0]
        plan[filled : filled + len(batches)] = batches
        filled += len(batches)
    return plan


def images_of_pass(labels: np.ndarray, num_instances: int, rule: Rule) -> int:
    """How many images a pass of `epoch_plan` visits."""
    counts = np.bincount(labels[labels >= 0])
    alone = int((counts == 1).sum())
    return num_instances * int((counts > 1).sum()) + alone * (1 if rule is other_cameras else num_instances)


def _members_by_label(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
