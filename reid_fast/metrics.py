"""Retrieval scores: CMC, mAP and mINP under the same-camera rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reid_fast.device import full_precision
from reid_fast.errors import UserError
from reid_fast.ranks import ALONE, Ranks

_BLOCK_ELEMENTS = 2**23  # query × gallery scores held at once: 32 MiB in float32
_NO_MATCH = (
    "no query has its identity in the gallery under another camera, so nothing can be scored: "
    "check the identities and that there is more than one camera"
)


@dataclass(frozen=True)
class Scores:
    """Means over the valid queries, each in 0..1.

    Attributes:
        mAP: mean average precision, step interpolation.
        rank1, rank5, rank10: CMC, the share of queries whose first correct match is among the first k.
        mINP: mean inverse negative penalty, matches / rank of the hardest match.
        queries: how many queries were scored.
        skipped: how many had no correct match.
    """

    mAP: float
    rank1: float
    rank5: float
    rank10: float
    mINP: float
    queries: int
    skipped: int


@dataclass(frozen=True)
class QueryScores:
    """What the ranking of each query comes to.

    Attributes:
        matches: [Q] float64, how many images of the gallery are correct; a query without one is not scored.
        precision: [Q] float64, average precision.
        first, last: [Q] float64, the rank of the first correct image, and of the last, from 1.
    """

    matches: Tensor
    precision: Tensor
    first: Tensor
    last: Tensor

    def mean(self) -> Scores:
        """The means over the queries that are scored.

        Raises:
            UserError: no query has a correct match, e.g. all images are from one camera.
        """
        scored = self._scored()
        matches, precision, first, last = (
            column[scored] for column in (self.matches, self.precision, self.first, self.last)
        )
        return Scores(
            mAP=precision.mean().item(),
            rank1=(first <= 1).double().mean().item(),
            rank5=(first <= 5).double().mean().item(),
            rank10=(first <= 10).double().mean().item(),
            mINP=(matches / last).mean().item(),
            queries=len(matches),
            skipped=len(scored) - len(matches),
        )

    def cmc(self, most: int) -> Tensor:
        """[most] float64: the share of the scored queries with a correct image among the first 1, 2, ... `most`.

        Raises:
            UserError: as `mean`.
        """
        first = self.first[self._scored()]
        return (first[:, None] <= torch.arange(1, most + 1)).double().mean(0)

    def _scored(self) -> Tensor:
        scored = self.matches > 0
        if not scored.any():
            raise UserError(_NO_MATCH)
        return scored


def rank_scores(
    query: Tensor | npt.NDArray[np.floating],
    query_pids: npt.ArrayLike,
    query_cams: npt.ArrayLike,
    gallery: Tensor | npt.NDArray[np.floating],
    gallery_pids: npt.ArrayLike,
    gallery_cams: npt.ArrayLike,
    *,
    block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Scores:
    """Rank the gallery for every query by inner product and score the rankings.

    A query does not see gallery images of its own identity from its own camera, nor junk (pid -1); it is
    skipped when no correct match remains. AP counts equal scores as one step (scikit-learn's
    `average_precision_score`); the ranks of CMC and mINP order equal scores by gallery index. mINP is from
    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2022.

    Args:
        query: [Q, D] unit features, any float type, CPU or CUDA; half types are widened to float32.
        query_pids: [Q] identities.
        query_cams: [Q] cameras.
        gallery: [G, D] unit features; the work is done on its device.
        gallery_pids: [G] identities; 0 may be distractors, which match no query.
        gallery_cams: [G] cameras.
        block: queries ranked at once; memory grows with block × G, never with Q × G. Default: 2²³ // G.
        progress: called with (queries done, queries in all) after each block.
        ranks: share the queries; all of them call this with the same features and get the scores.

    Raises:
        ValueError: shapes that do not fit, a NaN or Inf (names the row).
        UserError: no query has a correct match, e.g. all images are from one camera.
    """
    gallery = _features("gallery", torch.as_tensor(gallery))
    query = _features("query", torch.as_tensor(query)).to(gallery)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")
    _check_ids("query", len(query), query_pids, query_cams)
    _check_ids("gallery", len(gallery), gallery_pids, gallery_cams)

    def similarity(rows: slice) -> Tensor:
        with full_precision(gallery.device):
            return query[rows] @ gallery.T

    ids = query_pids, query_cams, gallery_pids, gallery_cams
    return score_queries(similarity, *ids, device=gallery.device, block=block, progress=progress, ranks=ranks).mean()


def score_queries(
    similarity: Callable[[slice], Tensor],
    query_pids: npt.ArrayLike,
    query_cams: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    gallery_cams: npt.ArrayLike,
    *,
    device: torch.device,
    block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> QueryScores:
    """Rank the gallery by any similarity and score each query's ranking, by the rules of `rank_scores`.

    Args:
        similarity: called with a slice of the queries; [b, G] on `device`, larger is nearer, written over here.
        query_pids, query_cams: [Q] identities and cameras.
        gallery_pids, gallery_cams: [G] the same.
        device: where the work is done.
        block, progress, ranks: as in `rank_scores`.

    Returns:
        The scores of all queries, on the CPU.
    """
    q_pids, q_cams, g_pids, g_cams = (
        torch.as_tensor(column, device=device) for column in (query_pids, query_cams, gallery_pids, gallery_cams)
    )
    block = block or queries_at_once(len(g_pids))
    shares = ranks.shares(len(q_pids))
    own = shares[ranks.rank]
    columns = torch.empty(len(q_pids), 4, dtype=torch.float64, device=device)
    for start in range(own.start, own.stop, block):
        rows = slice(start, min(start + block, own.stop))
        same = q_pids[rows, None] == g_pids
        hidden = (same & (q_cams[rows, None] == g_cams)) | (g_pids == -1)
        scores = similarity(rows).masked_fill_(hidden, -torch.inf)
        columns[rows] = _score_block(scores, same & ~hidden).T
        if progress is not None:
            progress(rows.stop - own.start, own.stop - own.start)
    ranks.complete(columns, shares)
    return QueryScores(*columns.T.cpu())


def queries_at_once(gallery: int) -> int:
    """How many queries are ranked at once against so many images."""
    return max(1, _BLOCK_ELEMENTS // max(1, gallery))


def check_evaluable(
    query_pids: npt.ArrayLike,
    query_cams: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    gallery_cams: npt.ArrayLike,
) -> int:
    """How many of the queries have a correct match from another camera; `UserError` when none has.

    Needs no features, so a run can ask before it trains.
    """
    valid = int(have_matches(query_pids, query_cams, gallery_pids, gallery_cams).sum())
    if not valid:
        raise UserError(_NO_MATCH)
    return valid


def have_matches(
    query_pids: npt.ArrayLike,
    query_cams: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    gallery_cams: npt.ArrayLike,
) -> npt.NDArray[np.bool_]:
    """[Q] whether each query has a correct match from another camera."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for pid, cam in zip(np.asarray(gallery_pids).tolist(), np.asarray(gallery_cams).tolist(), strict=True):
        cameras[pid].add(cam)
    queries = zip(np.asarray(query_pids).tolist(), np.asarray(query_cams).tolist(), strict=True)
    return np.array([pid != -1 and bool(cameras.get(pid, set()) - {cam}) for pid, cam in queries], dtype=bool)


def _score_block(similarity: Tensor, match: Tensor) -> Tensor:
    """Score each row of one block.

    Args:
        similarity: [b, G], -inf where the query does not see the image.
        match: [b, G] bool, the correct images that it sees.

    Returns:
        [4, b] float64: number of matches, AP, rank of the first match, rank of the last (both from 1).
    """
    counts = match.sum(1)
    score, index = _padded_matches(similarity, match, counts)
    # How many images score at least as much as each match: one sort of a row answers for all its matches.
    reached = similarity.shape[1] - torch.searchsorted(_sorted(similarity), score)
    hits = score.shape[1] - torch.searchsorted(_sorted(score), score)
    precision = (hits.double() / reached).masked_fill_(score == -torch.inf, 0)
    first = _stable_rank(similarity, *_extreme(score, index, best=True))
    last = _stable_rank(similarity, *_extreme(score, index, best=False))
    return torch.stack([counts.double(), precision.sum(1) / counts, first.double(), last.double()])


def _padded_matches(similarity: Tensor, match: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's matches: [b, P] similarity, padded with -inf, and [b, P] gallery index."""
    rows, found = match.nonzero(as_tuple=True)
    slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    width = max(1, int(counts.max()))
    score = similarity.new_full((len(similarity), width), -torch.inf)
    index = found.new_zeros(len(similarity), width)
    score[rows, slot] = similarity[rows, found]
    index[rows, slot] = found
    return score, index


def _extreme(score: Tensor, index: Tensor, *, best: bool) -> tuple[Tensor, Tensor]:
    """[b] similarity and gallery index of the match that the stable order puts first (or last)."""
    if best:
        value = score.amax(1)
        return value, index.masked_fill(score != value[:, None], torch.iinfo(index.dtype).max).amin(1)
    value = score.masked_fill(score == -torch.inf, torch.inf).amin(1)
    return value, index.masked_fill(score != value[:, None], -1).amax(1)


def _stable_rank(similarity: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """[b] rank, from 1, of gallery image `index` of similarity `value`; equal ones rank by gallery index."""
    position = torch.arange(similarity.shape[1], device=similarity.device)
    value, index = value[:, None], index[:, None]
    before = (similarity > value) | ((similarity == value) & (position < index))
    return before.sum(1) + 1


def _sorted(values: Tensor) -> Tensor:
    if values.device.type == "cpu":  # NumPy's sort of bare values is vectorised: 15 times faster than torch's
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _features(name: str, features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"{name} features are {tuple(features.shape)}, not [N, D]")
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    finite = features.sum(dim=1).isfinite()  # of the sums, because isfinite() copies its whole input
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} features: row {row} has a NaN or Inf")
    return features


def _check_ids(name: str, rows: int, pids: npt.ArrayLike, cams: npt.ArrayLike) -> None:
    shapes = [tuple(np.shape(column)) for column in (pids, cams)]
    if any(shape != (rows,) for shape in shapes):
        raise ValueError(f"{name}: {rows} features, but pids and cams of shape {' and '.join(map(str, shapes))}")


def label_scores(labels: np.ndarray, pids: np.ndarray) -> dict[str, float]:
    """How well pseudo labels agree with known identities, over the clustered images alone.

    Args:
        labels: [N] int pseudo labels, -1 = outlier.
        pids: [N] int identities, -1 = unknown.

    Returns:
        "nmi" and "ari" (scikit-learn's), or nothing where no clustered image has a known identity.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = (labels >= 0) & (pids >= 0)
    if not known.any():
        return {}
    return {
        "nmi": float(normalized_mutual_info_score(pids[known], labels[known])),
        "ari": float(adjusted_rand_score(pids[known], labels[known])),
    }
