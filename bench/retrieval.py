"""A trained encoder in use: features of files, ranked lists, re-ranking, each beside another way to the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from epoch import opened
from planted import planted_features
from published import published_reranking
from report import Lap, Row, interleaved, lap, summed_up
from torch import Tensor

import reid_fast
from reid_fast.clustering import Reranking
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, ImageStream
from reid_fast.evaluate import describe
from reid_fast.labels.extract import extract
from reid_fast.metrics import queries_at_once, score_queries
from reid_fast.retrieval import LoadedEncoder, rank

WIDTH, K = 2048, 10
K1, K2, SHARE = 20, 6, 0.3
WITHIN = 1e-4  # mAP of both ways of re-ranking


def retrieval(smoke: bool, folders: Sequence[Path]) -> list[Row]:
    """Rows of `embed`, `search` and `--rerank`; the first one on the first folder's set or the synthetic one."""
    gallery, _ = planted_features(2_000 if smoke else 100_000, WIDTH)
    runs = 3 if smoke else 9
    searches = [_search(gallery, queries, runs) for queries in (1, 64)]
    del gallery
    sizes = (100, 700) if smoke else (3_368, 15_913)  # Market-1501's queries and gallery
    return [_embed(folders[0] if folders else None, runs, smoke), *searches, _reranking(*sizes, 3)]


def _embed(folder: Path | None, runs: int, smoke: bool) -> Row:
    """`embed` of files beside the engine's own extraction of a data set's images."""
    with opened(folder, "--recipe", "small", "--threads", "0") as run:
        config, paths = run.config, run.data.train.paths
        paths = paths[:256] if smoke else paths
        loaded = LoadedEncoder(run.method.model, describe(config), run.device, workers=config.workers)
        norm = NORMALISATIONS[config.image_norm]

        def engine() -> Tensor:
            stream = ImageStream(
                paths, config.size, batch_size=256, device=run.device, threads=config.workers, norm=norm
            )
            return extract(run.method.model, stream)

        def embed() -> Tensor:
            return loaded.encode_files(paths, Console(quiet=True))

        _same("embed", embed(), engine())
        ours, beside = interleaved([lambda: lap(embed)[1], lambda: lap(engine)[1]], runs)
    about = {"set": config.dataset, "arch": config.arch, "size": config.size, "images": len(paths)}
    about |= {"threads": torch.get_num_threads()}
    return {"stage": "embed", **about, "ours": ours, "beside": beside, "beside_is": "extraction in training"}


def _search(gallery: Tensor, queries: int, runs: int) -> Row:
    """A query's time, one alone and many at once, in a gallery that is loaded."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery.numpy())
    query = gallery[:: len(gallery) // queries][:queries] + 0.01
    found, theirs = rank(query, gallery, K)[0], index.search(query.numpy(), K)[1]
    if (found.numpy() == theirs).mean() < 0.99:  # what is equal but for rounding may change places
        raise SystemExit("retrieval: the lists are not those of faiss")
    sides = [lambda: lap(lambda: rank(query, gallery, K))[1], lambda: lap(lambda: index.search(query.numpy(), K))[1]]
    ours, flat = interleaved([lambda side=side: side() / queries for side in sides], runs)
    stage = f"search, one of {queries} queries" if queries > 1 else "search, one query"
    return {"stage": stage, "n": len(gallery), "D": WIDTH, "ours": ours, "faiss_flat": flat}


def _reranking(queries: int, gallery: int, runs: int) -> Row:
    """All distances, in blocks as `evaluate` takes them, beside the dense matrices of the published code."""
    rows, pids = planted_features(queries + gallery, WIDTH)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    ids, cams = pids[order].numpy(), np.arange(len(rows)) % 6
    query, others = rows[order[:queries]], rows[order[queries:]]
    del rows

    def precision(distances: Callable[[slice], Tensor]) -> float:
        of = ids[:queries], cams[:queries], ids[queries:], cams[queries:]
        return score_queries(lambda rows: -distances(rows), *of, device=torch.device("cpu")).mean().mAP

    def ours() -> Reranking:
        made = reid_fast.rerank(query, others, K1, K2, SHARE)
        block = queries_at_once(gallery)
        for start in range(0, queries, block):
            made.distances(slice(start, start + block))
        return made

    def published() -> Tensor:
        return torch.from_numpy(published_reranking(query.numpy(), others.numpy(), K1, K2, SHARE))

    ours()  # a warm start for the shorter one
    laps: list[Lap] = []
    for _ in range(runs):
        found, taken = lap(ours, peak=True)
        laps.append(taken)
    theirs, beside = lap(published, peak=True)
    scores = precision(found.distances), precision(theirs.__getitem__)
    if abs(scores[0] - scores[1]) > WITHIN:
        raise SystemExit(f"retrieval: re-ranking scores {scores[0]:.6f}, the published form {scores[1]:.6f}")
    row = {"stage": "re-ranking", "n": f"{queries}+{gallery}", "D": WIDTH, "threads": torch.get_num_threads()}
    row |= {"mAP": scores, "plain_mAP": precision((1 - query @ others.T).__getitem__)}
    return row | {"ours": summed_up(laps), "published_dense": summed_up([beside])}


def _same(stage: str, found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise SystemExit(f"retrieval: {stage} gives other features than the engine")
