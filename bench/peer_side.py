"""The stages of an epoch put together from the parts of a checkout, as its training script does: runs beside `Peer`.

DALI stays out of this process: it does not survive the forks by which torch's loaders start theirs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from planted import random_people
from report import Lap, lap
from sklearn.cluster import DBSCAN
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reid_fast.config import Config
from reid_fast.data.images import IMAGENET
from reid_fast.data.images.normalisation import ERASE_FILL
from reid_fast.data.sets import ImageSet
from reid_fast.models.archs import Options
from reid_fast.models.encoder import Encoder

BICUBIC = 3
EXTRACTED = 256  # images at once, as `extract` takes them
SILENT = 10**9  # steps between lines of progress
Work = Callable[[], object]
Triples = list[tuple[str, int, int]]  # path, identity, camera: what the published code calls a data set


@dataclass(frozen=True)
class Task:
    """What both sides work on."""

    config: Config
    train: ImageSet
    query: ImageSet
    gallery: ImageSet
    weights: dict[str, np.ndarray]  # of the encoder
    device: str
    threads: int


class Side:
    """A checkout's stages on a task."""

    def __init__(self, parts: dict[str, Any], task: Task) -> None:
        torch.set_num_threads(task.threads)
        faiss.omp_set_num_threads(task.threads)
        self.parts, self.task, self.config = parts, task, task.config
        config = task.config
        encoder = Encoder(config.arch, config.pooling_type, config.bn_group, Options(config.size, config.stem_relu))
        self.encoder = encoder.to(task.device, memory_format=torch.channels_last)
        self.distance = self.labels = np.empty(0)  # of the last stage that made them

    def lap(self, times: int, peak: bool, stage: str, *inputs: Any) -> Lap:
        """What one call took of what a method below, the stage, returns: from the task's weights on, called `times`.

        A peak does not count the processes that decode images.
        """
        self._reset()
        work = getattr(self, stage)(*inputs)
        return lap(lambda: [work() for _ in range(times)], peak=peak)[1] / times

    # What is compared with the engine's own.

    def features(self, images: np.ndarray) -> np.ndarray:
        """[n, D] of images [n, 3, H, W], as the engine decodes the first n of the training set."""
        self._reset()
        return self._matrix([_loaded(images, self.task.train)], self.task.train.paths[: len(images)]).numpy()

    def mean_precision(self, query: np.ndarray, gallery: np.ndarray) -> float:
        """mAP of the test images' features [Q, D] and [G, D]."""
        loader = [_loaded(query, self.task.query), _loaded(gallery, self.task.gallery)]
        return float(self._scores(nn.Identity(), loader))

    def jaccard_distance(self, features: np.ndarray, ranking: np.ndarray) -> np.ndarray:
        """[N, N] of the features [N, D] with a given ranking [N, k1] instead of a search's."""
        with mock.patch.object(faiss, "IndexFlatL2", return_value=_Ranked(ranking)):
            return self._jaccard(features)

    def contrast(self, x: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss of features x [B, D], its gradient to them, and the rows after it."""
        memory, leaf = self._memory(torch.tensor(rows)), self._put(x).requires_grad_()
        loss = memory(leaf, self._put(labels))
        loss.backward()
        return loss.item(), leaf.grad.cpu().numpy(), memory.features.cpu().numpy()

    def clusters(self) -> int:
        """How many the last labels have."""
        return int(self.labels.max() + 1)

    # The stages.

    def pictures(self, labels: np.ndarray) -> Work:
        """The pictures of an epoch's steps."""
        loader = self._training_loader(labels)

        def serve() -> None:
            loader.new_epoch()
            for _ in range(self.config.iters):
                loader.next()

        return serve

    def extraction(self, count: int | None = None) -> Work:
        """The features of the first `count` training images, or of all, from their files."""
        images = self.task.train.select(np.arange(len(self.task.train))[:count])
        return lambda: self._matrix(self._test_loader(_triples(images)), images.paths)

    def knn(self, features: np.ndarray) -> Work:
        """The search within the Jaccard distance."""

        def search() -> None:
            index = faiss.IndexFlatL2(features.shape[1])
            index.add(features)
            index.search(features, self.config.k1)

        return search

    def jaccard(self, features: np.ndarray) -> Work:
        """Neighbours and the dense Jaccard distance, which the next `dbscan` clusters."""

        def compute() -> None:
            self.distance = self._jaccard(features)

        self.distance = np.empty(0)
        return compute

    def dbscan(self) -> Work:
        """Labels from the distance."""
        return partial(self._cluster, self.distance)

    def memory_part(self, x: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> Work:
        """Loss, gradient and update of the memory from given features."""
        memory, given, targets = self._memory(torch.tensor(rows)), self._put(x), self._put(labels)
        return lambda: memory(given.clone().requires_grad_(), targets).backward()

    def step(self, images: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> Work:
        """A step of the trainer on a batch that is there."""
        batch = _Repeated(torch.from_numpy(images), torch.from_numpy(labels))
        return partial(self._train, batch, self._memory(torch.tensor(rows)), self._optimizer(), 1)

    def training(self, labels: np.ndarray, rows: np.ndarray) -> Work:
        """The steps of an epoch, with their pictures."""
        loader, memory, optimizer = self._training_loader(labels), self._memory(torch.tensor(rows)), self._optimizer()

        def train() -> None:
            loader.new_epoch()
            self._train(loader, memory, optimizer, self.config.iters)

        return train

    def ranking(self, queries: int, gallery: int, width: int) -> Work:
        """The scores of features that are there."""
        people = random_people(queries, width, seed=0), random_people(gallery, width, seed=1)
        sets = [
            ImageSet(tuple(Path(f"{part}/{i}") for i in range(len(pids))), pids.numpy(), cams.numpy())
            for part, (_, pids, cams) in enumerate(people)
        ]
        loader = [_loaded(rows.numpy(), images) for (rows, _, _), images in zip(people, sets, strict=True)]
        evaluate = self.parts["Evaluator"](nn.Identity()).evaluate
        return lambda: evaluate(loader, *map(_triples, sets), cmc_flag=False)

    def evaluation(self) -> Work:
        """Features and scores of the test images, from their files."""
        triples = _triples(self.task.query) + _triples(self.task.gallery)
        return lambda: self._scores(self.encoder, self._test_loader(triples))

    def epoch(self) -> Work:
        """Features to labels, the memory, and the steps."""

        def run() -> None:
            features = self._matrix(self._test_loader(_triples(self.task.train)), self.task.train.paths)
            self._cluster(self._jaccard(features.numpy()))
            loader = self._training_loader(self.labels)
            loader.new_epoch()
            self._train(loader, self._memory(_centres(features, self.labels)), self._optimizer(), self.config.iters)

        return run

    # From the checkout's parts.

    def _reset(self) -> None:
        self.encoder.load_state_dict({name: torch.from_numpy(value) for name, value in self.task.weights.items()})

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.task.device)

    def _test_loader(self, triples: Triples) -> DataLoader:
        parts = self.parts
        resize = parts["Resize"](self.config.size, interpolation=BICUBIC)
        transform = parts["Compose"]([resize, parts["ToTensor"](), self._normalize()])
        return self._loader(triples, transform, batch_size=EXTRACTED)

    def _training_loader(self, labels: np.ndarray) -> Any:
        parts, config = self.parts, self.config
        steps = [
            parts["Resize"](config.size, interpolation=BICUBIC),
            parts["RandomHorizontalFlip"](p=0.5),
            parts["Pad"](config.pad),
            parts["RandomCrop"](config.size),
            parts["ToTensor"](),
            self._normalize(),
            parts["RandomErasing"](probability=config.erase, mean=list(ERASE_FILL)),
        ]
        known = self.task.train.select(labels >= 0)
        triples = _triples(ImageSet(known.paths, labels[labels >= 0], known.cams))
        sampler = parts["RandomMultipleGallerySampler"](triples, config.num_instances)
        more = {"batch_size": config.batch_size, "sampler": sampler, "drop_last": True}
        return parts["IterLoader"](self._loader(triples, parts["Compose"](steps), **more), length=config.iters)

    def _normalize(self) -> Any:
        return self.parts["Normalize"](mean=list(IMAGENET.mean), std=list(IMAGENET.std))

    def _loader(self, triples: Triples, transform: Any, **more: Any) -> DataLoader:
        images = self.parts["Preprocessor"](triples, root=None, transform=transform)
        # By fork, as its users' processes are started: this one, being spawned, would spawn them, which takes seconds.
        more |= {"num_workers": self.config.workers, "multiprocessing_context": "fork" if self.config.workers else None}
        return DataLoader(images, pin_memory=torch.cuda.is_available(), **more)

    def _matrix(self, loader: Any, paths: Sequence[Path]) -> Tensor:
        found, _ = self.parts["extract_features"](self.encoder, loader, print_freq=SILENT)
        return torch.stack([found[str(path)] for path in paths])

    def _jaccard(self, features: np.ndarray) -> np.ndarray:
        # The search is the CPU's, on a machine with a GPU too: the published default.
        sizes = {"k1": self.config.k1, "k2": self.config.k2, "print_flag": False, "search_option": 3}
        return self.parts["compute_jaccard_distance"](torch.from_numpy(features), **sizes)

    def _cluster(self, distance: np.ndarray) -> None:
        config = self.config
        clusters = DBSCAN(eps=config.eps, min_samples=config.min_samples, metric="precomputed", n_jobs=-1)
        self.labels = clusters.fit_predict(distance)

    def _memory(self, rows: Tensor) -> Any:
        settings = {"temp": self.config.temp, "momentum": self.config.momentum}
        memory = self.parts["ClusterMemory"](rows.shape[1], len(rows), **settings).to(self.task.device)
        memory.features = F.normalize(rows).to(self.task.device)
        return memory

    def _optimizer(self) -> torch.optim.Optimizer:
        weights = [{"params": [weight]} for weight in self.encoder.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def _train(self, loader: Any, memory: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
        trainer = self.parts["ClusterContrastTrainer"](self.encoder, memory)
        trainer.train(0, loader, optimizer, print_freq=SILENT, train_iters=steps)

    def _scores(self, model: nn.Module, loader: Any) -> float:
        both = map(_triples, (self.task.query, self.task.gallery))
        return self.parts["Evaluator"](model).evaluate(loader, *both, cmc_flag=False)  # mAP, as within a training


class _Repeated:
    """A training loader that has one batch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.batch = images, None, labels, None, labels

    def __len__(self) -> int:
        return 1

    def next(self) -> tuple[Any, ...]:
        """The batch."""
        return self.batch


class _Ranked:
    """An index whose answer is given."""

    def __init__(self, ranking: np.ndarray) -> None:
        self.ranking = ranking

    def add(self, rows: np.ndarray) -> None:
        """Take no notice of the rows."""

    def search(self, rows: np.ndarray, k: int) -> tuple[None, np.ndarray]:
        """The answer."""
        return None, self.ranking[:, :k]


def _loaded(values: np.ndarray, images: ImageSet) -> tuple[Any, ...]:
    """A loader's batch of values of the first images."""
    names = [str(path) for path in images.paths[: len(values)]]
    return torch.from_numpy(values), names, images.pids[: len(values)].tolist(), None, None


def _triples(images: ImageSet) -> Triples:
    columns = images.pids.tolist(), images.cams.tolist()
    return [(str(path), pid, cam) for path, pid, cam in zip(images.paths, *columns, strict=True)]


def _centres(features: Tensor, labels: np.ndarray) -> Tensor:
    """[C, D] the mean feature of each cluster, gathered image by image, as the training script does."""
    members: dict[int, list[Tensor]] = defaultdict(list)
    for feature, label in zip(features, labels.tolist(), strict=True):
        if label >= 0:
            members[label].append(feature)
    return torch.stack([torch.stack(members[label]).mean(0) for label in sorted(members)])
