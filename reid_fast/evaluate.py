"""Score an encoder on a data set: `python -m reid_fast.evaluate RUN_FOLDER --dataset market1501 --data-dir DATA`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from reid_fast import run_folder
from reid_fast.clustering import reporting, rerank
from reid_fast.command_line import read
from reid_fast.config import Config
from reid_fast.console import Console
from reid_fast.data.images import NORMALISATIONS, ImageFiles, ImageStream, Normalisation
from reid_fast.data.open import OpenedSet, open_set
from reid_fast.data.sets import SIZES, ImageSet, ReidSet, counts_table
from reid_fast.device import amp_dtype, pick_device
from reid_fast.errors import UserError
from reid_fast.labels.extract import extract
from reid_fast.marks import Count, Positional, Short, Threads, check_ranges
from reid_fast.metrics import Scores, rank_scores, score_queries
from reid_fast.metrics_log import score_table
from reid_fast.models.archs import Options
from reid_fast.models.encoder import Encoder
from reid_fast.models.footprint import check_room
from reid_fast.ranks import ALONE, Ranks, command

# Identities and cameras of the queries, then of the gallery.
Ids = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class EvaluateConfig:
    """Score the encoder of a run folder: mAP, CMC and mINP under the field's same-camera rule."""

    run_folder: Annotated[Path, Positional]
    """what `--logs-dir` was, or was chosen, in training"""
    dataset: Annotated[str, Short("-d")] = "synthetic"
    """a name from the list above"""
    data_dir: Path | None = None
    """the data set's folder, or one that holds it; of a folder set also a .csv, .parquet or .tar file"""
    pattern: str | None = None
    """folder only: a regular expression on file names with the groups `cam` and `pid`"""
    skip_bad_images: bool = False
    """leave out unreadable images and count them, instead of stopping"""
    output: Path | None = None
    """the JSON file to write; by default RUN_FOLDER/evaluate-DATASET.json"""
    batch_size: Annotated[Count, Short("-b")] = 256
    """images at once"""
    workers: Annotated[Threads, Short("-j")] = 2
    """CPU threads that decode images"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    amp: bool = False
    """extract features in mixed precision"""
    rerank: bool = False
    """score k-reciprocal re-ranking too (k1 20, k2 6, lambda 0.3)"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with command() as ranks:
        config = read(EvaluateConfig, argv, description=f"{EvaluateConfig.__doc__}\n\nData sets: {', '.join(SIZES)}.")
        check_ranges(config)
        evaluate(config, ranks)


def evaluate(config: EvaluateConfig, ranks: Ranks = ALONE) -> Scores:
    """Score a run folder's encoder, print a table and write JSON.

    Args:
        config: the settings.
        ranks: the processes that share the work, all of which call this.

    Returns:
        The scores without re-ranking.
    """
    device = pick_device(config.device, ranks.local_rank)
    with ranks.connected(device):
        return _evaluate(config, device, ranks)


def _evaluate(config: EvaluateConfig, device: torch.device, ranks: Ranks) -> Scores:
    console = Console(quiet=not ranks.first)
    encoder, description = ranks.from_first(lambda: load_encoder(config.run_folder))
    output = config.output or config.run_folder / f"evaluate-{config.dataset}.json"
    run_folder.check_output(output)

    def opened() -> ReidSet:
        found = open_set(
            config.dataset,
            config.data_dir,
            pattern=config.pattern,
            skip_bad_images=config.skip_bad_images,
            threads=config.workers,
            console=console,
        )
        return announce(found, console)

    data = ranks.from_first(opened)
    if data.query is None or data.gallery is None:
        raise UserError(f"{config.dataset} has no queries and gallery to evaluate on")
    paths, size = data.query.paths + data.gallery.paths, (description["height"], description["width"])
    batch_size = min(config.batch_size, len(paths))
    amp = amp_dtype(device, config.amp, description["width"])
    check_room(encoder, size, device, batch=batch_size, precision=amp)
    images = ImageStream(
        paths,
        size,
        batch_size=batch_size,
        norm=Normalisation.of(description),
        device=device,
        threads=config.workers,
    )
    features = features_of(
        encoder.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]  # the stub lacks it
        images,
        len(data.query),
        console,
        amp=amp,
        batch_size=batch_size,
        ranks=ranks,
    )
    ids = data.query.pids, data.query.cams, data.gallery.pids, data.gallery.cams
    scores = rank_scores(features[0], *ids[:2], features[1], *ids[2:], ranks=ranks)
    table, content = {config.dataset: asdict(scores)}, {"dataset": config.dataset, **asdict(scores)}
    if config.rerank:
        content["reranked"] = asdict(score_reranked(*features, ids, console, ranks=ranks))
        table[f"{config.dataset}, re-ranked"] = content["reranked"]
    console.say(score_table(table))
    if ranks.first:
        run_folder.write_json(output, {**content, "model": description})
    console.say(f"written to {output}")
    return scores


def announce(opened: OpenedSet, console: Console) -> ReidSet:
    """Say what was found in a data set, and return it."""
    if opened.left_out:
        console.say(f"left out {len(opened.left_out)} unreadable images, the first one {opened.left_out[0]}")
    console.say(counts_table(opened.data))
    return opened.data


def score_encoder(
    encoder: Encoder,
    images: ImageFiles,
    query: ImageSet,
    gallery: ImageSet,
    console: Console,
    *,
    amp: torch.dtype | None = None,
    batch_size: int = 256,
    ranks: Ranks = ALONE,
) -> Scores:
    """Extract the features of queries and gallery and rank them, on the encoder's device.

    Args:
        encoder: what makes features.
        images: the queries, then the gallery.
        query, gallery: what is known of them.
        console: shows the progress.
        amp: the autocast type; None computes in float32.
        batch_size: images at once.
        ranks: share the work; all of them get the scores.
    """
    queries, others = features_of(encoder, images, len(query), console, amp=amp, batch_size=batch_size, ranks=ranks)
    return rank_scores(queries, query.pids, query.cams, others, gallery.pids, gallery.cams, ranks=ranks)


def features_of(
    encoder: Encoder,
    images: ImageFiles,
    queries: int,
    console: Console,
    *,
    amp: torch.dtype | None = None,
    batch_size: int = 256,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """The features of the queries [Q, D] and of the gallery [G, D].

    Args:
        queries: how many of the images, the first ones, are queries.

    The other arguments are those of `score_encoder`.
    """
    with console.progress("evaluating") as report:
        features = extract(encoder, images, batch_size=batch_size, amp=amp, progress=report, ranks=ranks)
    return features[:queries], features[queries:]


def score_reranked(query: Tensor, gallery: Tensor, ids: Ids, console: Console, *, ranks: Ranks = ALONE) -> Scores:
    """Scores of the k-reciprocal re-ranking of features, with the published settings.

    Args:
        query, gallery: [Q, D] and [G, D] L2-normalised features, the same on all ranks.
        ids: identities and cameras of the queries [Q], then of the gallery [G].
        console: told what begins; shows the progress.
        ranks: share the work, but for the weights of `rerank`, which the first one makes.
    """
    with console.progress("preparing", "parts") as report, reporting(report):
        made = rerank(query, gallery, say=lambda stage: console.say(f"re-ranking: {stage}"), ranks=ranks)
    with console.progress("re-ranking", "queries") as report:
        return score_queries(
            lambda rows: made.distances(rows).neg_(), *ids, device=gallery.device, progress=report, ranks=ranks
        ).mean()


def describe(config: Config) -> dict[str, Any]:
    """What inference must know of an exported encoder."""
    norm = NORMALISATIONS[config.image_norm]
    return {
        "arch": config.arch,
        "pooling_type": config.pooling_type,
        "stem_relu": config.stem_relu,
        "height": config.height,
        "width": config.width,
        "mean": norm.mean,
        "std": norm.std,
        "resize": "bicubic, antialiased, aspect ratio not kept",
        "colour": "RGB in [0, 1] before mean and std",
        "feature": "after the neck, L2-normalised",
    }


def load_encoder(folder: Path) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a run folder, in eval mode, and its description.

    Raises:
        UserError: not a run folder, or its two files do not fit each other.
    """
    tensors, description = run_folder.load_export(folder)
    try:
        options = Options((description["height"], description["width"]), description["stem_relu"])
        encoder = Encoder(description["arch"], description["pooling_type"], options=options)
        encoder.load_state_dict(tensors)
    except (KeyError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.safetensors and model.json in {folder} do not fit each other ({reason})") from None
    return encoder.eval(), description


if __name__ == "__main__":
    main()
