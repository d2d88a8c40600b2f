"""The engine's settings, each with its range; a method's file extends them with its own, and recipes overlay them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from reid_fast.errors import UserError
from reid_fast.marks import (
    Count,
    CountOrZero,
    Distance,
    Dropped,
    MayChange,
    NotNegative,
    Pixels,
    PixelsOrZero,
    Positive,
    Seed,
    Share,
    Short,
    Threads,
    ThreadsOrZero,
    check_ranges,
    marks,
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on."""

    method: str = "cc"
    """the system to train: see the list above"""
    dataset: Annotated[str, Short("-d")] = "synthetic"
    """a name from the list above; synthetic is drawn on first use, folder takes your own crops"""
    data_dir: Annotated[Path | None, MayChange] = None
    """the data set's folder, or one that holds it; of a folder set also a .csv, .parquet or .tar file"""
    pattern: str | None = None
    """folder only: a regular expression on file names with a group `cam` (and `pid`, where identities are known)"""
    skip_bad_images: Annotated[bool, MayChange] = False
    """leave out unreadable images and count them, instead of stopping"""
    recipe: Annotated[tuple[str, ...], MayChange] = ()
    """settings to lay over the method's: small (small encoder and images, from scratch, for CPUs; synthetic has it
    anyway), gem, vit (a transformer's, as published with Cluster Contrast: see docs/encoders.md)"""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are decoded and augmented."""

    height: Pixels = 256
    """of the images, in pixels"""
    width: Pixels = 128
    """of the images, in pixels"""
    pad: PixelsOrZero = 10
    """black border before the random crop, in pixels"""
    erase: Share = 0.5
    """probability of random erasing"""
    image_norm: Literal["imagenet", "half"] = "imagenet"
    """mean and deviation by which pixels in [0, 1] are normalised: ImageNet's, or 0.5 and 0.5, as for transformers
    pretrained on LUPerson; what --weights were trained with"""
    workers: Annotated[Threads, Short("-j"), MayChange] = 2
    """CPU threads that decode images"""
    cache: Annotated[NotNegative, MayChange] = 6.0
    """GiB of memory that decoded images may take, held on the device or else on its host; 0: none"""
    cache_dir: Annotated[Path | None, MayChange] = None
    """folder on a disk of this machine where images that memory does not take are held decoded, 3·H·W bytes each, for
    all its processes and for later runs; without it they are decoded at every use"""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images, in pixels."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What makes features of images."""

    arch: Annotated[str, Short("-a")] = "resnet50"
    """the backbone: a name from the list above"""
    pooling_type: Literal["avg", "gem"] = "avg"
    """global pooling of the feature map; ignored by transformers and OSNets, which make features themselves"""
    stem_relu: bool = True
    """ResNets: keep the ReLU behind the stem's BatchNorm (CAP's published code lacks it); ignored by others"""
    drop_path: Dropped = 0.0
    """transformers: share of images that skip a branch of the last block in training, growing from 0 in the first
    (stochastic depth); ignored by others"""
    weights: str = "imagenet"
    """initial weights of the encoder: imagenet, none, a checkpoint of published code, or a run folder"""
    bn_group: CountOrZero = 64
    """images per BatchNorm group in training, whatever the number of devices; 0: the whole batch"""


@dataclass(frozen=True, kw_only=True)
class ClusteringSettings:
    """How features become pseudo labels: k-reciprocal Jaccard distance, DBSCAN."""

    eps: Distance = 0.6
    """DBSCAN's radius, a Jaccard distance"""
    min_samples: Count = 4
    """neighbours, itself included, that make a core"""
    k1: Count = 30
    """neighbours in the k-reciprocal sets"""
    k2: Count = 6
    """neighbours in the query expansion"""
    knn: Literal["exact", "ivf"] = "exact"
    """all neighbours, or approximate ones, for millions of images; their recall is printed"""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Batches and the optimiser."""

    epochs: Annotated[Count, MayChange] = 50
    """cluster-then-train rounds"""
    iters: CountOrZero = 200
    """steps per epoch; 0: as many as the images in clusters fill"""
    batch_size: Annotated[Count, Short("-b")] = 256
    """images per step: identities × instances"""
    num_instances: Count = 16
    """images of each identity in a batch"""
    cam: bool = True
    """use camera ids to pick an identity's images"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """what moves the weights; sgd has a momentum of 0.9"""
    lr: Positive = 3.5e-4
    """learning rate"""
    weight_decay: NotNegative = 5e-4
    """share of a weight that is added to its gradient (adam, sgd), or, times the learning rate, taken off it apart from
    the gradient (adamw)"""
    step_size: CountOrZero = 20
    """epochs between divisions of the learning rate by 10; 0: it is never divided"""
    warmup_epochs: CountOrZero = 0
    """epochs over which the learning rate rises in a straight line; 0: none"""
    warmup_factor: NotNegative = 0.1
    """share of the learning rate at which that rise starts"""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run computes and what it leaves."""

    config: Annotated[Path | None, MayChange] = None
    """a .yaml or .json file of settings, which flags override; a run's config.json repeats it"""
    logs_dir: Annotated[Path | None, MayChange] = None
    """the run folder; by default the next free logs/METHOD-DATASET-NUMBER"""
    resume: Annotated[bool, MayChange] = False
    """continue the run in the run folder; starts one where there is none"""
    show_config: Annotated[bool, MayChange] = False
    """print every setting with its origin, and stop"""
    dry_run: Annotated[bool, MayChange] = False
    """try two steps of every stage on some of the images, estimate time and memory of the whole run, leave nothing"""
    seed: Seed = 1
    """of every random draw"""
    amp: bool = False
    """mixed precision: bfloat16 where the device has it; else float16 with a loss scaler on a GPU, float32 on a CPU"""
    device: Annotated[str, MayChange] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    threads: Annotated[ThreadsOrZero, MayChange] = 0
    """CPU threads that compute the network; 0: one per core. Layers of small networks are too small to share, and any
    other load on the machine then holds up each of them"""
    deterministic: Annotated[bool, MayChange] = False
    """bit-equal runs on CUDA too, at some cost in speed"""
    cuda_graph: Annotated[bool, MayChange] = False
    """launch each training step as one CUDA graph: for small batches, whose GPU waits for launches (not yet proved on a
    GPU)"""
    eval_step: Annotated[Count, MayChange] = 10
    """epochs between evaluations; the last one of --epochs is always evaluated"""
    save_steps: Annotated[Count, MayChange] = 100
    """steps between checkpoints inside an epoch; the end of each epoch is always saved"""
    save_best: Annotated[bool, MayChange] = False
    """keep the encoder of the epoch whose clusters lie furthest apart (their silhouette, which uses no identities), in
    the folder best of the run folder"""
    patience: Annotated[CountOrZero, MayChange] = 0
    """epochs without a larger silhouette after which the run ends, as --save-best keeps its best; 0: never"""
    tensorboard: Annotated[bool, MayChange] = False
    """write TensorBoard events into the run folder"""
    wandb: Annotated[str | None, MayChange] = None
    """the project of Weights & Biases that gets the run; WANDB_MODE=offline keeps it for `wandb sync`"""


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How images go through a trained encoder."""

    height: PixelsOrZero = 0
    """of the images that a file of weights was trained with, in pixels; 0: 256, and of a run its own"""
    width: PixelsOrZero = 0
    """the same; 0: 128, and of a run its own"""
    image_norm: Literal["imagenet", "half"] | None = None
    """with which mean and deviation a file of weights was trained, by default imagenet's; a run knows its own"""
    skip_bad_images: bool = False
    """leave out unreadable images and count them, instead of stopping"""
    batch_size: Annotated[Count, Short("-b")] = 256
    """images at once"""
    workers: Annotated[Threads, Short("-j")] = 2
    """CPU threads that decode images"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    threads: ThreadsOrZero = 0
    """CPU threads that compute the network; 0: one per core"""
    amp: bool = False
    """compute features in mixed precision"""


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings, TrainingSettings, ClusteringSettings, EncoderSettings, ImageSettings, DataSettings):
    """Train an encoder for person re-identification without labels."""

    @property
    def needs_cameras(self) -> bool:
        """Whether every image's camera must be known."""
        return False

    @property
    def samples_by_camera(self) -> bool:
        """Whether the sampler looks at cameras when it picks an identity's images."""
        return self.cam


Overlay: TypeAlias = Mapping[str, Any]  # some settings, by name

RECIPES: dict[str, Overlay] = {
    "small": {
        "arch": "resnet18_half",
        "weights": "none",
        "pooling_type": "gem",
        "height": 64,
        "width": 32,
        "pad": 3,
        "batch_size": 64,
        "num_instances": 4,
        "bn_group": 16,
        "erase": 0.2,
        "lr": 7e-4,
        "epochs": 15,
        "iters": 100,
        "eval_step": 5,
        "threads": 1,
    },
    "gem": {"pooling_type": "gem"},
    "vit": {
        "arch": "vit_small",
        "image_norm": "half",
        "drop_path": 0.3,
        "optimizer": "sgd",
        "lr": 3.5e-4,
        "weight_decay": 5e-4,
        "batch_size": 256,
        "num_instances": 8,
        "bn_group": 64,
    },
}
RECIPES_OF = {"synthetic": ("small",)}  # data sets that are made for a recipe


def check(config: Config) -> None:
    """
    Raises:
        UserError: a setting is out of its range, or two do not fit each other.
    """
    check_ranges(config)
    if config.batch_size % config.num_instances:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of --num-instances {config.num_instances}")
    if 0 < config.bn_group < config.batch_size and config.batch_size % config.bn_group:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of --bn-group {config.bn_group}")
    if min(config.bn_group or config.batch_size, config.batch_size) == 1:
        raise UserError("--bn-group must hold at least 2 images, and so must --batch-size: one has no statistics")
    if config.k2 > config.k1:
        raise UserError(f"--k2 {config.k2} must not exceed --k1 {config.k1}")


def fixed(config: Config) -> dict[str, Any]:
    """The settings that a continued run must share, as JSON's types."""
    return {name: value for name, value in to_json(config).items() if MayChange not in marks(type(config), name)}


def to_json(config: Config) -> dict[str, Any]:
    """The settings as JSON's types."""
    return {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
