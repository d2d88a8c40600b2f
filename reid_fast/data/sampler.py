"""Which pictures make a batch: P identities with K instances each, drawn for a whole epoch at once."""

from __future__ import annotations

import numpy as np

from reid_fast.errors import UserError

_STREAM = 0x5A4D504C  # keeps these draws apart from every other use of the run's seed


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
) -> np.ndarray:
    """Draw the batches of one epoch (the "random multiple gallery sampler" of the published code).

    A pass visits every identity once, in random order; passes follow one another, and the incomplete batch at the end
    of each is dropped. The draw depends on the arguments alone, so a resumed run draws the same batches.

    Args:
        labels: [N] int pseudo labels; -1 takes no part.
        cams: [N] int cameras.
        batch_size: B.
        num_instances: K, pictures per identity.
        iters: batches.
        seed, epoch: the source of randomness.
        use_cams: take an identity's further pictures from other cameras than its first, where there are any.

    Returns:
        [iters, B] int64 picture indices.

    Raises:
        UserError: one pass does not fill a batch.
    """
    rng = np.random.default_rng([_STREAM, seed, epoch])
    members = _members_by_label(labels)
    plan = np.empty((iters, batch_size), dtype=np.int64)
    filled = 0
    while filled < iters:
        order = _one_pass(members, cams if use_cams else None, num_instances, rng)
        batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)[: iters - filled]
        if len(batches) == 0:
            raise UserError(
                f"{len(members)} clusters give {len(order)} pictures, which do not fill a batch of {batch_size}: "
                "lower --batch-size or --num-instances, or let more clusters form with another --eps"
            )
        plan[filled : filled + len(batches)] = batches
        filled += len(batches)
    return plan


def _members_by_label(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _one_pass(
    members: list[np.ndarray], cams: np.ndarray | None, num_instances: int, rng: np.random.Generator
) -> np.ndarray:
    groups = []
    for label in rng.permutation(len(members)):
        own = members[label]
        anchor = own[rng.integers(len(own))]
        others = own[cams[own] != cams[anchor]] if cams is not None else own[:0]
        if len(others) == 0:
            others = own[own != anchor]
        groups.append([anchor])
        if len(others) > 0 and num_instances > 1:
            # The published code compares with K, not K-1: exactly K-1 candidates are drawn with replacement too.
            replace = len(others) < num_instances
            groups.append(rng.choice(others, num_instances - 1, replace=replace))
    return np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
