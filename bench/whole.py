"""A run of Cluster Contrast on MSMT17 from its parts, each measured as the driver runs it: what an epoch costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from planted import planted_features
from report import Row, ratio, timed

import reid_fast
from reid_fast.data.images import Loader
from reid_fast.data.images.held import Held
from reid_fast.data.images.store import ImageStore
from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.device import amp_dtype
from reid_fast.labels.extract import extract
from reid_fast.methods import new_method, settings_class
from reid_fast.metrics import rank_scores
from reid_fast.train import Run, train_step

# MSMT17's images, and the paper's epochs with their evaluations.
TRAIN, QUERY, GALLERY, EPOCHS, ITERS, EVALUATIONS = 32_621, 11_659, 82_161, 50, 400, 6
SMALL = {"arch": "resnet18_half", "height": 64, "width": 32, "batch_size": 64, "num_instances": 4, "bn_group": 16}


def whole(smoke: bool) -> list[Row]:
    """One row: seconds of each part, of an epoch and of the run. Without a GPU, at the sizes of `--recipe small`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = device.type == "cpu" or smoke
    train, query, gallery = (400, 40, 200) if small else (TRAIN, QUERY, GALLERY)
    runs = 3 if small else 10
    run = _run(device, 640 if small else 4096, SMALL if small else {})
    batches = _batches(run, 2 * runs)
    for _ in range(runs):
        train_step(run, next(batches))
    _, step = timed(lambda: train_step(run, next(batches)), runs)
    images = run.loader.target
    _, extraction = timed(lambda: extract(run.method.model, images, amp=run.amp), 3)
    _, unfolded = timed(lambda: extract(run.method.model, images, amp=run.amp, fold=False), 3)
    features = planted_features(train)[0].to(device)
    _, clustering = timed(lambda: reid_fast.dbscan(reid_fast.jaccard_graph(features, 30, 6, 0.6), 0.6), 3)
    _, ranking = timed(lambda: _ranked(query, gallery, device), 1)
    an_image = extraction["seconds"] / len(images.paths)
    epoch = an_image * train + clustering["seconds"] + ITERS * step["seconds"]
    scores = an_image * (query + gallery) + ranking["seconds"]
    return [
        {
            "stage": "whole",
            "images": train,
            "device": device.type,
            "step": step,
            "extraction": extraction,
            "unfolded": unfolded,
            "faster": ratio(unfolded, extraction),
            "extracted_per_second": round(1 / an_image),
            "clustering": clustering,
            "ranking": ranking,
            "epoch_seconds": round(epoch, 3),
            "evaluation_seconds": round(scores, 3),
            "run_minutes": round((EPOCHS * epoch + EVALUATIONS * scores) / 60, 2),
        }
    ]


def _run(device: torch.device, n: int, settings: dict[str, Any]) -> Run:
    """The parts of a run that a step and an extraction use; its images are noise, held as decoded ones are."""
    config = settings_class("cc")(method="cc", weights="none", pooling_type="gem", amp=True, **settings)
    paths = tuple(Path(f"{i}.jpg") for i in range(n))
    images = TrainingSet(ImageSet(paths, np.zeros(n, np.int64), np.arange(n) % 15))
    method = new_method(config, images).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.randint(256, (n, *config.size, 3), dtype=torch.uint8, device=device)
    store = ImageStore(paths, pixels)
    held = Held.judge(n, config.size, config.cache, device)
    loader = Loader(images, held, store, store, config.size, tuple(method.views), config.seed, device)
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    amp = amp_dtype(device, True, config.width)
    parts = {"config": config, "method": method, "loader": loader, "optimizer": optimizer, "scaler": scaler}
    return cast(Run, SimpleNamespace(device=device, amp=amp, **parts))


def _batches(run: Run, steps: int) -> Any:
    """Steps on clusters of twenty images, about as large as MSMT17's are."""
    n = len(run.loader.paths)
    labels = np.arange(n) % max(2, n // 20)
    run.method.fill_memory(F.normalize(torch.randn(n, run.method.model.width, device=run.device)), labels)
    run.method.train()
    plan = run.method.plan_epoch(labels, 0)
    return run.loader.batches(np.resize(plan, (steps, plan.shape[1])), labels, epoch=0)


def _ranked(query: int, gallery: int, device: torch.device) -> object:
    """The scores of random features."""
    rng = np.random.default_rng(0)
    pids = [rng.integers(gallery // 25 + 1, size=n) for n in (query, gallery)]
    cams = [rng.integers(15, size=n) for n in (query, gallery)]
    features = [F.normalize(torch.randn(n, 2048, device=device)) for n in (query, gallery)]
    return rank_scores(features[0], pids[0], cams[0], features[1], pids[1], cams[1])
