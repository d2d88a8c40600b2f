"""Every setting of a run in one dataclass, and the layers that fill it: defaults, method, data set, recipe, flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from reid_fast.errors import UserError

try:
    import tyro
    from tyro.conf import arg
except ImportError:
    raise UserError("the command line needs tyro: pip install tyro") from None


@dataclass(frozen=True)
class Config:
    """Train an encoder for person re-identification without labels."""

    method: str = "cc"
    """the system to train: see the list above"""
    dataset: Annotated[str, arg(aliases=["-d"])] = "synthetic"
    """synthetic (drawn on first use), market1501, dukemtmcreid, msmt17, personx, veri776, or folder (your crops)"""
    data_dir: Path | None = None
    """the data set's folder, or one that holds it"""
    pattern: str | None = None
    """folder only: a regular expression on file names with a group `cam` (and `pid`, where identities are known)"""
    skip_bad_images: bool = False
    """leave out unreadable pictures and count them, instead of stopping"""
    recipe: tuple[str, ...] = ()
    """settings to lay over the method's: small (small encoder and pictures, from scratch, for CPUs), gem"""
    logs_dir: Path | None = None
    """the run folder; by default the next free logs/METHOD-DATASET-NUMBER"""
    resume: bool = False
    """continue the run in the run folder; starts one where there is none"""
    show_config: bool = False
    """print every setting with its origin, and stop"""

    height: int = 256
    """of the pictures, in pixels"""
    width: int = 128
    """of the pictures, in pixels"""
    pad: int = 10
    """black border before the random crop, in pixels"""
    erase: float = 0.5
    """probability of random erasing"""
    workers: Annotated[int, arg(aliases=["-j"])] = 2
    """CPU threads that decode pictures"""

    arch: Annotated[str, arg(aliases=["-a"])] = "resnet50"
    """resnet18_half, resnet18, resnet34, resnet50, resnet101 or resnet_ibn50a"""
    pooling_type: Literal["avg", "gem"] = "avg"
    """global pooling of the feature map"""
    weights: str = "imagenet"
    """initial weights of the encoder: imagenet, none or a file"""
    bn_group: int = 64
    """pictures per BatchNorm group in training, whatever the number of devices; 0: the whole batch"""

    eps: float = 0.6
    """DBSCAN's radius, a Jaccard distance"""
    min_samples: int = 4
    """neighbours, itself included, that make a DBSCAN core"""
    k1: int = 30
    """neighbours in the k-reciprocal sets"""
    k2: int = 6
    """neighbours in the query expansion"""
    knn: Literal["exact", "ivf"] = "exact"
    """all neighbours, or approximate ones through faiss, for millions of pictures; its recall is printed"""

    epochs: int = 50
    """cluster-then-train rounds"""
    iters: int = 200
    """steps per epoch"""
    batch_size: Annotated[int, arg(aliases=["-b"])] = 256
    """pictures per step: identities × instances"""
    num_instances: int = 16
    """pictures of each identity in a batch"""
    cam: bool = True
    """use camera ids to pick an identity's pictures"""
    lr: float = 3.5e-4
    """learning rate of Adam"""
    weight_decay: float = 5e-4
    """L2 penalty, coupled as in Adam"""
    step_size: int = 20
    """epochs between divisions of the learning rate by 10"""
    momentum: float = 0.1
    """share of the old prototype that an update of the memory keeps"""
    temp: float = 0.05
    """temperature of the contrastive loss"""
    update: Literal["serial", "hard"] = "serial"
    """momentum update of the memory: sample after sample, or with each cluster's least similar member"""

    seed: int = 1
    """of every random draw"""
    amp: bool = False
    """mixed precision: bfloat16 where the device has it, else float16 with a loss scaler"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    deterministic: bool = False
    """bit-equal runs on CUDA too, at some cost in speed"""
    eval_step: int = 10
    """epochs between evaluations; the last epoch is always evaluated"""
    save_steps: int = 100
    """steps between checkpoints inside an epoch; the end of each epoch is always saved"""
    tensorboard: bool = False
    """write TensorBoard events into the run folder"""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures, in pixels."""
        return self.height, self.width


_SMALL = {
    "arch": "resnet18_half",
    "weights": "none",
    "pooling_type": "gem",
    "height": 64,
    "width": 32,
    "pad": 3,
    "batch_size": 64,
    "num_instances": 4,
    "bn_group": 0,
    "epochs": 15,
    "iters": 100,
    "eval_step": 5,
}
RECIPES: dict[str, dict[str, Any]] = {"small": _SMALL, "gem": {"pooling_type": "gem"}}
DATASETS: dict[str, dict[str, Any]] = {
    "synthetic": _SMALL,
    "market1501": {},
    "dukemtmcreid": {},
    "msmt17": {"iters": 400},
    "personx": {"eps": 0.7},
    "veri776": {"iters": 400, "height": 224, "width": 224},
    "folder": {},
}

_MAY_BE_ZERO = {"pad", "bn_group", "seed"}

Layers = list[tuple[str, Mapping[str, Any]]]


def parse(
    argv: Sequence[str] | None, methods: Sequence[str], settings: Callable[[str, str], Layers]
) -> tuple[Config, dict[str, str]]:
    """Read the command line.

    Args:
        argv: the flags; None takes the process's own.
        methods: the names that `--method` takes.
        settings: (method, dataset) -> the method's layers, each a name and its settings, weakest first.

    Returns:
        The settings, and for each the layer it came from.

    Raises:
        UserError: an unknown method, data set or recipe, or a setting out of range.
    """
    description = f"{Config.__doc__}\n\nMethods: {', '.join(methods)}."
    asked = tyro.cli(Config, args=argv, description=description)
    for flag, name, known in (
        ("method", asked.method, methods),
        ("dataset", asked.dataset, DATASETS),
        *(("recipe", name, RECIPES) for name in asked.recipe),
    ):
        if name not in known:
            raise UserError(f"--{flag} {name} is not known: choose from {', '.join(sorted(known))}")
    layers = [
        *settings(asked.method, asked.dataset),
        (f"data set {asked.dataset}", DATASETS[asked.dataset]),
        *((f"recipe {name}", RECIPES[name]) for name in asked.recipe),
    ]
    base = Config(**{key: value for _, layer in layers for key, value in layer.items()})
    config = tyro.cli(Config, args=argv, default=base, description=description)
    origin = {key: name for name, layer in layers for key in layer}
    origin |= {key: "flag" for key in _fields() if getattr(config, key) != getattr(base, key)}
    _check(config)
    return config, {key: origin.get(key, "default") for key in _fields()}


def _fields() -> list[str]:
    return [field.name for field in dataclasses.fields(Config)]


def _check(config: Config) -> None:
    for name, value in vars(config).items():
        least = 0 if name in _MAY_BE_ZERO else 1
        if type(value) is int and value < least:
            raise UserError(f"{flag_of(name)} must be at least {least}, not {value}")
    if config.weight_decay < 0:
        raise UserError(f"--weight-decay must not be negative, not {config.weight_decay}")
    if config.batch_size % config.num_instances:
        raise UserError(
            f"--batch-size {config.batch_size} is not a multiple of --num-instances {config.num_instances}"
        )
    if 0 < config.bn_group < config.batch_size and config.batch_size % config.bn_group:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of --bn-group {config.bn_group}")
    if config.k2 > config.k1:
        raise UserError(f"--k2 {config.k2} must not exceed --k1 {config.k1}")
    if not 0 < config.eps < 1:
        raise UserError(f"--eps must lie between 0 and 1, both excluded, not {config.eps}")
    if not 0 <= config.erase <= 1:
        raise UserError(f"--erase is a probability, not {config.erase}")
    if not 0 <= config.momentum < 1:
        raise UserError(f"--momentum must lie in [0, 1), not {config.momentum}")
    if not (config.temp > 0 and config.lr > 0):
        raise UserError(f"--temp and --lr must be positive, not {config.temp} and {config.lr}")


def flag_of(name: str) -> str:
    """The flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def to_json(config: Config) -> dict[str, Any]:
    """The settings as JSON's types."""
    return {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
