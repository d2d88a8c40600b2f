"""Runs of the published schedules, projected from their parts as measured here: the engine beside a checkout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from epoch import drained, evaluated_images, opened
from peer import Peer
from peer_side import Task
from planted import planted_features, random_people
from report import Lap, Row, interleaved, lap, ratio
from torch import Tensor

import reid_fast
from reid_fast.data.images import ImageStream
from reid_fast.data.images.image_files import Part
from reid_fast.device import amp_dtype
from reid_fast.epoch import train_epoch
from reid_fast.labels.extract import extract
from reid_fast.metrics import Scores, rank_scores
from reid_fast.run import Position, Run

EPOCHS, BATCH, EVALUATIONS = 50, 256, 6
K1, K2, EPS = 30, 6, 0.6
PAPER = ("--arch", "resnet50", "--height", "256", "--width", "128", "--pooling-type", "avg")
TINY = ("--arch", "resnet18_half", "--height", "64", "--width", "32", "--pooling-type", "avg")
ASSUMES = (
    "training and extraction grow with the images; the engine's clustering is measured at the set's size, the other at "
    "`clustered` rows and grows with their square; ranking grows with queries × gallery; evaluations decode their "
    "images; start-up is left out"
)


class Schedule(NamedTuple):
    """A published one, and the images of its set."""

    name: str
    train: int
    query: int
    gallery: int
    iters: int


class Sizes(NamedTuple):
    """What is measured."""

    flags: tuple[str, ...]
    batch: int
    steps: int
    extracted: int
    clustered: int
    queries: int  # ranked, each against Market-1501's gallery
    runs: int


SCHEDULES = (Schedule("Market-1501", 12_936, 3_368, 15_913, 200), Schedule("MSMT17", 32_621, 11_659, 82_161, 400))
SMOKE = Sizes(TINY, batch=16, steps=2, extracted=32, clustered=1_000, queries=20, runs=1)
CPU = Sizes(PAPER, batch=32, steps=1, extracted=64, clustered=12_936, queries=300, runs=5)
CUDA = Sizes(PAPER, batch=256, steps=10, extracted=2_048, clustered=12_936, queries=300, runs=3)
WARM_UP = 2  # steps in which oneDNN compiles its bfloat16 kernels: four times as long as the third
AMP = {"float32": False, "mixed": True}


def whole(smoke: bool, folders: Sequence[Path], peer: Peer) -> list[Row]:
    """A row for each schedule and precision of the engine; the checkout computes in float32, as it was published."""
    sizes = SMOKE if smoke else CUDA if torch.cuda.is_available() else CPU
    batch = ("--batch-size", str(sizes.batch), "--bn-group", str(min(64, sizes.batch)), "--num-instances", "4")
    flags = (*sizes.flags, *batch, "--iters", str(sizes.steps), "--weights", "none", "--threads", "0")
    with opened(folders[0] if folders else None, *flags) as run:
        network = _network(run, peer, sizes)
        interleaved(list(network.values()), WARM_UP)
        laps = network | _vectors(peer, sizes, run.device)
        costs = dict(zip(laps, interleaved(list(laps.values()), sizes.runs), strict=True))
        parts = {"stage": "parts of a run", "measured": sizes._asdict(), "costs": costs, "assumes": ASSUMES}
        rows = [projection(run, peer, sizes, schedule, name, costs) for schedule in SCHEDULES for name in AMP]
        return [parts, *rows]


def _network(run: Run, peer: Peer, sizes: Sizes) -> dict[str, Callable[[], Lap]]:
    """What takes the time of one image: decoded, extracted and trained, by the engine and beside it."""
    method, labels = run.method, run.data.train.pids  # clusters as good as they get
    memory = F.normalize(torch.randn(int(labels.max()) + 1, method.model.width))
    method.fill_memory(memory[labels].to(run.device), labels)
    weights = {name: value.cpu().numpy() for name, value in method.model.state_dict().items()}
    parts = run.data.train, *evaluated_images(run)
    peer("start", Task(run.config, *parts, weights, str(run.device), torch.get_num_threads()))
    first = Part(run.loader.target, 0, sizes.extracted)
    stream = ImageStream(first.paths, run.config.size, device=run.device, threads=run.config.workers)
    trained = sizes.batch * sizes.steps

    def decoding() -> None:
        drained(stream.plain(np.arange(len(first.paths)), 256))

    def training(amp: bool) -> None:
        run.at, run.amp = Position(labels=torch.from_numpy(labels)), _amp(run, amp)
        train_epoch(run)

    def extraction(amp: bool) -> Tensor:
        return extract(method.model, first, amp=_amp(run, amp))

    laps = {
        "decoding": lambda: lap(decoding)[1] / sizes.extracted,
        "extraction beside": lambda: peer("lap", 1, False, "extraction", sizes.extracted) / sizes.extracted,
        "training beside": lambda: peer("lap", 1, False, "training", labels, memory.numpy()) / trained,
    }
    for name, amp in AMP.items():
        laps[f"extraction, {name}"] = lambda amp=amp: lap(lambda: extraction(amp))[1] / sizes.extracted
        laps[f"training, {name}"] = lambda amp=amp: lap(lambda: training(amp))[1] / trained
    return laps


def _vectors(peer: Peer, sizes: Sizes, device: torch.device) -> dict[str, Callable[[], Lap]]:
    """What takes the time of a clustering, and of one query's similarity to one image when it is ranked."""
    features = planted_features(sizes.clustered)[0].numpy()
    ranked = sizes.queries, SCHEDULES[0].gallery, features.shape[1]
    pairs = sizes.queries * SCHEDULES[0].gallery

    def theirs() -> Lap:
        jaccard, dbscan = peer("lap", 1, True, "jaccard", features), peer("lap", 1, False, "dbscan")
        return Lap(jaccard.seconds + dbscan.seconds, jaccard.processor + dbscan.processor, jaccard.peak_mb)

    def clustering(rows: Tensor) -> np.ndarray:
        return reid_fast.dbscan(reid_fast.jaccard_graph(rows, K1, K2, EPS), EPS)

    laps = {
        "clustering beside": theirs,
        "ranking": lambda: lap(lambda: _ranked(*ranked, device))[1] / pairs,
        "ranking beside": lambda: peer("lap", 1, False, "ranking", *ranked) / pairs,
    }
    for schedule in SCHEDULES:
        rows = planted_features(min(schedule.train, sizes.clustered) if sizes is SMOKE else schedule.train)[0].to(
            device
        )
        laps[f"clustering, {schedule.name}"] = lambda rows=rows: lap(lambda: clustering(rows), peak=True)[1]
    return laps


def projection(run: Run, peer: Peer, sizes: Sizes, schedule: Schedule, precision: str, costs: dict[str, Row]) -> Row:
    """A run of the schedule on both sides, and where its seconds go."""
    tested, pairs = EVALUATIONS * (schedule.query + schedule.gallery), EVALUATIONS * schedule.query * schedule.gallery
    extracted, trained = EPOCHS * schedule.train, EPOCHS * schedule.iters * BATCH
    grown = EPOCHS * (schedule.train / sizes.clustered) ** 2

    def priced(terms: dict[str, float]) -> Row:
        return {
            key: sum(times * costs[part][key] for part, times in terms.items()) for key in ("seconds", "min", "max")
        }

    evaluated = {f"extraction, {precision}": tested, "decoding": tested, "ranking": pairs}
    ours = {
        "decoding": priced({"decoding": schedule.train}),
        "extraction": priced({f"extraction, {precision}": extracted}),
        "clustering": priced({f"clustering, {schedule.name}": EPOCHS}),
        "training": priced({f"training, {precision}": trained}),
        "evaluation": priced(evaluated),
    }
    beside = {
        "extraction": priced({"extraction beside": extracted}),
        "clustering": priced({"clustering beside": grown}),
        "training": priced({"training beside": trained}),
        "evaluation": priced({"extraction beside": tested, "ranking beside": pairs}),
    }
    both = {"ours": _sum(ours) | {"n": sizes.runs}, "beside": _sum(beside) | {"n": sizes.runs}}
    return {
        "stage": f"{EPOCHS} epochs, projected",
        "set": schedule.name,
        "arch": run.config.arch,
        "size": run.config.size,
        "amp": str(_amp(run, AMP[precision])),
        "B": BATCH,
        "iters": schedule.iters,
        "threads": torch.get_num_threads(),
        **both,
        "beside_is": peer.name,
        "faster": ratio(both["beside"], both["ours"]),
        "seconds_by_part": {
            side: {part: round(cost["seconds"], 1) for part, cost in of.items()}
            for side, of in (("ours", ours), ("beside", beside))
        },
    }


def _sum(parts: dict[str, Row]) -> Row:
    return {key: round(sum(part[key] for part in parts.values()), 1) for key in ("seconds", "min", "max")}


def _ranked(queries: int, gallery: int, width: int, device: torch.device) -> Scores:
    """The scores of random features."""
    (query, *known), (images, *theirs) = random_people(queries, width, 0), random_people(gallery, width, 1)
    return rank_scores(query.to(device), *known, images.to(device), *theirs)


def _amp(run: Run, wanted: bool) -> torch.dtype | None:
    return amp_dtype(run.device, wanted, run.config.width)
