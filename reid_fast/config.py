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
    source: str | None = None
    """cc, spcl: a labelled data set to learn from too, --batch-size pictures of each in a step, BatchNorm by domain"""
    source_dir: Path | None = None
    """the source's folder, or one that holds it"""
    source_pattern: str | None = None
    """--source folder: as --pattern, with a group `pid`"""
    recipe: tuple[str, ...] = ()
    """settings to lay over the method's: small (small encoder and pictures, from scratch, for CPUs; synthetic has it
    anyway), gem"""
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
    cache: float = 6.0
    """GiB that decoded training pictures may take, held on the device; 0: they are decoded at every use"""

    arch: Annotated[str, arg(aliases=["-a"])] = "resnet50"
    """resnet18_half, resnet18, resnet34, resnet50, resnet101 or resnet_ibn50a"""
    pooling_type: Literal["avg", "gem"] = "avg"
    """global pooling of the feature map"""
    stem_relu: bool = True
    """keep the ReLU behind the stem's BatchNorm (CAP's published code lacks it)"""
    domain_bias: bool = False
    """--source: train the biases of the neck, as SpCL's published code does when it doubles its BatchNorm"""
    weights: str = "imagenet"
    """initial weights of the encoder: imagenet, none or a file"""
    bn_group: int = 64
    """pictures per BatchNorm group in training, whatever the number of devices; 0: the whole batch"""

    cluster: Literal["dbscan", "hdbscan", "infomap"] = "dbscan"
    """how pictures are clustered: dbscan and hdbscan by Jaccard distance, infomap by cosine similarity"""
    eps: float = 0.6
    """DBSCAN's radius, a Jaccard distance"""
    min_samples: int = 4
    """neighbours, itself included, that make a core"""
    min_cluster: int = 5
    """--cluster hdbscan and infomap: pictures of the smallest cluster"""
    min_similarity: float = 0.5
    """--cluster infomap: least cosine similarity that links two pictures"""
    neighbours: int = 15
    """--cluster infomap: nearest pictures, itself included, that may be linked"""
    k1: int = 30
    """neighbours in the k-reciprocal sets"""
    k2: int = 6
    """neighbours in the query expansion"""
    knn: Literal["exact", "ivf"] = "exact"
    """all neighbours, or approximate ones through faiss, for millions of pictures; its recall is printed"""

    epochs: int = 50
    """cluster-then-train rounds"""
    iters: int = 200
    """steps per epoch; 0: as many as the pictures in clusters fill"""
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
    """epochs between divisions of the learning rate by 10; 0: it is never divided"""
    warmup_epochs: int = 0
    """epochs over which the learning rate rises in a straight line; 0: none"""
    warmup_factor: float = 0.1
    """share of the learning rate at which that rise starts"""
    momentum: float = 0.1
    """share of the old prototype that an update of the memory keeps"""
    temp: float = 0.05
    """temperature of the contrastive loss"""
    update: Literal["serial", "hard", "weighted", "mean"] = "serial"
    """cc, dccc, cap-cc: momentum update of the memory: sample after sample, or once a cluster with its least similar
    member, its members weighted by dissimilarity, or their mean"""
    update_temp: float = 0.03
    """dccc and --update weighted: temperature of the weights by dissimilarity"""
    smoothing: float = 0.1
    """share of the target that is spread: over all clusters alike (ice), as the teacher scores them (dccc)"""
    soft_weight: float = 1.0
    """weight of the soft loss: beside the others (ice), against the plain contrast's 1 - weight (dccc)"""
    ema: float = 0.999
    """dccc, ice: share of its own weights that the teacher keeps in a step"""
    eps_schedule: Literal["expo", "linear", "step", "log", "fix"] = "expo"
    """dccc: how --eps falls from epoch to epoch"""
    eps_gap: float = 0.02
    """spcl, cacl: how far the tight and the loose radius lie from --eps"""

    camera_temp: float = 0.07
    """cap, cap-cc, ice: temperature of the contrast of camera proxies"""
    camera_momentum: float = 0.2
    """cap-cc: share of the old camera proxy that an update keeps"""
    camera_weight: float = 0.5
    """cap, cap-cc, ice: weight of the contrast across cameras"""
    camera_epoch: int = 5
    """cap, cap-cc: epochs before the contrast across cameras joins in"""
    negatives: int = 50
    """cap, cap-cc, ice: hard negatives of the contrast across cameras, at most 128"""
    intra: bool = True
    """cap-cc: contrast within each camera too"""
    camera_agnostic: bool = False
    """ice: use no camera ids, neither in the loss nor to pick pictures"""
    ice_norm: Literal["reference", "fixed"] = "reference"
    """ice: camera proxies normalised as in the published code, each feature over all proxies, or each proxy"""
    hard_temp: float = 0.1
    """ice: temperature of the hard instance loss"""
    soft_temp: float = 0.4
    """ice: temperature of the soft instance loss"""

    refill: bool = False
    """spcl, cacl: fill the memory from the encoder in every epoch, not in the first alone: an encoder from scratch
    outruns the rows"""
    focal: float = 4.0
    """cacl: exponent of the focal weight (4 in the published code, 2 in the paper)"""
    refine_ratio: float = 1.0
    """cacl: a tight sub-cluster stays in its cluster while ratio × its distance is at most the cluster's"""
    refine_norm: Literal["reference", "mean"] = "reference"
    """cacl: that distance as in the published code, which dissolves the larger part of a split cluster, or the mean"""

    rcl_init: Literal["csa", "mean"] = "csa"
    """rcl: prototypes of an epoch: members weighted by the attention they receive, or their mean"""
    rcl_update: Literal["hps", "hard_cos", "seq"] = "hps"
    """rcl: update with the member of least attention, with the least similar one, or sample after sample"""
    saa_train: Literal["weighted", "plain", "none"] = "weighted"
    """rcl: train the attention with each picture weighted by its attention, with all alike, or not at all"""
    saa_steps: int = 20
    """rcl: steps that train the attention at the start of an epoch"""
    saa_lr: float = 1e-4
    """rcl: learning rate of the attention"""
    hps_guard: float = 0.0
    """rcl: pass over members whose attention is below this share of the average; 0: none"""

    seed: int = 1
    """of every random draw"""
    amp: bool = False
    """mixed precision: bfloat16 where the device has it, else float16 with a loss scaler"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads that compute the network; 0: one per core. Layers of small networks are too small to share, and any
    other load on the machine then holds up each of them"""
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
    "bn_group": 16,
    "erase": 0.2,
    "lr": 7e-4,
    "epochs": 15,
    "iters": 100,
    "eval_step": 5,
    "threads": 1,
}
RECIPES: dict[str, dict[str, Any]] = {"small": _SMALL, "gem": {"pooling_type": "gem"}}
DATASETS: dict[str, dict[str, Any]] = {
    "synthetic": {},
    "market1501": {},
    "dukemtmcreid": {},
    "msmt17": {},
    "personx": {},
    "veri776": {"height": 224, "width": 224},
    "folder": {},
}
RECIPES_OF = {"synthetic": ("small",)}  # data sets that are made for a recipe

_MAY_BE_ZERO = {"threads", "pad", "bn_group", "seed", "iters", "step_size", "warmup_epochs", "camera_epoch"}
_POSITIVE = ("temp", "camera_temp", "hard_temp", "soft_temp", "update_temp", "lr", "saa_lr")
_SHARES = ("momentum", "camera_momentum", "ema")

Settings = Mapping[str, Any]  # by the names of `Config`


def parse(
    argv: Sequence[str] | None,
    methods: Sequence[str],
    settings: Callable[[str, str], tuple[Settings, Settings]],
) -> tuple[Config, dict[str, str]]:
    """Read the command line.

    Args:
        argv: the flags; None takes the process's own.
        methods: the names that `--method` takes.
        settings: (method, data set or recipe) -> the method's settings everywhere, and there.

    Returns:
        The settings, and for each the layer it came from.

    Raises:
        UserError: an unknown method, data set or recipe, or a setting out of range.
    """
    shown = [name.replace("_", "-") for name in methods]
    description = f"{Config.__doc__}\n\nMethods: {', '.join(shown)}."
    asked = tyro.cli(Config, args=argv, description=description)
    method = asked.method.replace("-", "_")
    for flag, name, known in (
        ("method", asked.method.replace("_", "-"), shown),
        ("dataset", asked.dataset, DATASETS),
        *([("source", asked.source, DATASETS)] if asked.source else []),
        *(("recipe", name, RECIPES) for name in asked.recipe),
    ):
        if name not in known:
            raise UserError(f"--{flag} {name} is not known: choose from {', '.join(sorted(known))}")
    everywhere, there = settings(method, asked.dataset)
    recipes = dict.fromkeys((*RECIPES_OF.get(asked.dataset, ()), *asked.recipe))  # each once, in this order
    layers = [
        (f"method {method}", everywhere),
        (f"data set {asked.dataset}", DATASETS[asked.dataset]),
        (f"{method} on {asked.dataset}", there),
        *(
            layer
            for name in recipes
            for layer in (
                (f"recipe {name}", RECIPES[name]),
                (f"{method} with {name}", settings(method, name)[1]),
            )
        ),
    ]
    base = Config(**{key: value for _, layer in layers for key, value in layer.items()})
    config = tyro.cli(Config, args=argv, default=base, description=description)
    config = dataclasses.replace(config, method=method)
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
    if not config.cache >= 0:
        raise UserError(f"--cache must not be negative, not {config.cache}")
    if config.batch_size % config.num_instances:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of --num-instances {config.num_instances}")
    if 0 < config.bn_group < config.batch_size and config.batch_size % config.bn_group:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of --bn-group {config.bn_group}")
    if config.k2 > config.k1:
        raise UserError(f"--k2 {config.k2} must not exceed --k1 {config.k1}")
    if not 0 < config.eps < 1:
        raise UserError(f"--eps must lie between 0 and 1, both excluded, not {config.eps}")
    if not 0 <= config.erase <= 1:
        raise UserError(f"--erase is a probability, not {config.erase}")
    for name in _SHARES:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{flag_of(name)} must lie in [0, 1), not {getattr(config, name)}")
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise UserError(f"{flag_of(name)} must be positive, not {getattr(config, name)}")
    if not 0 <= config.smoothing <= 1:
        raise UserError(f"--smoothing must lie between 0 and 1, not {config.smoothing}")
    if config.negatives > 128:
        raise UserError(f"--negatives must be at most 128, not {config.negatives}")


def flag_of(name: str) -> str:
    """The flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def to_json(config: Config) -> dict[str, Any]:
    """The settings as JSON's types."""
    return {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
