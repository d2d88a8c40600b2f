"""Several processes that work as one, started by torchrun: what they exchange, and how they end together."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise, starmap
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reid_fast import errors
from reid_fast.device import threads
from reid_fast.errors import UserError, exit_on_user_error

T = TypeVar("T")

_MEETING = timedelta(minutes=10)  # within which they connect, and exchange a tensor once the first one has come to it
# Longer than any stage in which one rank works and the others wait. That a rank has ended is noticed without it: its
# connections close, and torchrun stops the others.
_PATIENCE = timedelta(days=7)
_PARCEL = 2**22  # numbers that are sent together


class Ranks:
    """The processes of a run, each called a rank: one, unless torchrun has started several.

    All of them run the same code on the same settings. The first one clusters, logs and saves. One that fails leaves at
    once, and the others follow it.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, store: dist.Store | None = None
    ) -> None:
        """
        Args:
            rank, size: this process among all.
            local_rank, local_size: the same among those of its machine.
            store: what several share before they are connected.
        """
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.group: dist.ProcessGroup | None = None  # once they are connected, where there are several
        self._patient: dist.ProcessGroup | None = None  # the same, for what some have to wait for
        self._store = store

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun has set; one process where there is no torchrun.

        Raises:
            UserError: it is set in part, or the meeting point cannot be reached.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
        try:
            rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
            if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
                raise ValueError("a rank lies outside of its range")
            store, _, _ = next(dist.rendezvous("env://", timeout=_MEETING))
            # torchrun keeps one store for all its attempts, and the addresses of processes that are gone in it.
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        except (KeyError, ValueError, dist.DistError) as error:
            given = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise UserError(f"these processes cannot meet ({given}; {error}): start them with torchrun") from None
        return cls(rank, size, local_rank, local_size, store)

    @property
    def first(self) -> bool:
        """Whether this is the rank that clusters, logs and saves."""
        return self.rank == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # what holds them may be copied; they are what they are

    # How they begin and end.

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Inside, they can exchange what lies on `device` and on the CPU.

        Args:
            device: where this rank computes; ranks of one machine that share a GPU exchange through the CPU.
        """
        if self.size == 1:
            yield
            return
        # NCCL refuses two ranks on one GPU; gloo takes them through the host's memory.
        own_gpu = device == torch.device("cuda", self.local_rank) and self.local_size <= torch.cuda.device_count()
        backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=_MEETING)
        self.group, self._patient = dist.group.WORLD, dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield
        except RuntimeError as error:
            # gloo's errors have no type of their own.
            if isinstance(error, dist.DistError) or "onnection" in str(error):
                self.leave(1, f"error: another process of the run has ended ({str(error).splitlines()[0]})")
            raise
        self.barrier()  # the store lives in one of them
        dist.destroy_process_group()
        self.group = self._patient = None

    def leave(self, code: int, sentence: str) -> NoReturn:
        """End this process; the others notice. What is said first is said alone, and its exit code is everybody's."""
        if self._store is None:
            errors.leave(code, sentence)
        try:
            if self._store.add("leaving", 1) == 1:
                self._store.set("exit code", str(code))
                print(sentence, file=sys.stderr, flush=True)
            elif self._store.wait(["exit code"], timedelta(seconds=5)) is None:
                code = int(self._store.get("exit code"))
        except (RuntimeError, ValueError):  # the store was the one that ended
            pass
        sys.stdout.flush()
        os._exit(code)  # what else there is to finish may wait for ranks that are no longer there

    # What they exchange. Alone, all of it is what it was.

    def barrier(self) -> None:
        """Wait for all."""
        if self.group is not None:
            dist.barrier(self._patient)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all of them; with the cores that the others of its machine leave idle.

        Raises:
            UserError: the first rank's.
        """
        if self.group is None:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                with threads(torch.get_num_threads() * self.local_size):
                    made[0] = make()
            except UserError as error:
                made[1] = str(error)
        dist.broadcast_object_list(made, 0, self._patient)
        if made[1] is not None:
            raise UserError(made[1])
        return made[0]

    @contextmanager
    def first_of_machine_first(self) -> Iterator[None]:
        """What is inside, the first rank of each machine does before the others: it may fill a cache for them."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What is inside, each rank does for itself, exchanging nothing; where one fails, all do, and say why.

        Raises:
            UserError: that of the first rank that had one.
        """
        reason: str | None = None
        try:
            yield
        except UserError as error:
            reason = str(error)
            if self.group is None:
                raise
        if self.group is not None:
            reasons: list[str | None] = [None] * self.size
            dist.all_gather_object(reasons, reason, self._patient)
            if said := next(filter(None, reasons), None):
                raise UserError(said)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any of them."""
        if self.group is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._patient)
        return bool(flags)

    def shares(self, n: int, unit: int = 1) -> list[slice]:
        """Contiguous parts of n, one a rank, as equal as whole units allow; the last unit may be short."""
        edges = [min(n, unit * edge) for edge in _edges(-(-n // unit), self.size)]
        return list(starmap(slice, pairwise(edges)))

    def complete(self, rows: Tensor, shares: Sequence[slice]) -> None:
        """Fill the parts of `rows`, [N, ...] and contiguous, that the others have made."""
        for rank, share in enumerate(shares if self.group is not None else ()):
            if share.stop > share.start:
                dist.broadcast(rows[share], rank, self.group)

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors, of the same shapes everywhere, those of the first rank."""
        for parcel in _parcels(tensors) if self.group is not None else ():
            if len(parcel) == 1 and parcel[0].is_contiguous():
                dist.broadcast(parcel[0], 0, self.group)
                continue
            sent = torch.cat([tensor.flatten() for tensor in parcel])
            dist.broadcast(sent, 0, self.group)
            for tensor, values in zip(parcel, sent.split([tensor.numel() for tensor in parcel]), strict=True):
                tensor.copy_(values.view_as(tensor))


def _parcels(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one kind, as many as fill a parcel: a network has hundreds, and each exchange takes its time."""
    kinds = defaultdict[Any, list[Tensor]](list)
    for tensor in tensors:
        if tensor.numel():
            kinds[tensor.dtype, tensor.device].append(tensor.detach())
    for same in kinds.values():
        parcel, filled = list[Tensor](), 0
        for tensor in same:
            if parcel and filled + tensor.numel() > _PARCEL:
                yield parcel
                parcel, filled = [], 0
            parcel.append(tensor)
            filled += tensor.numel()
        yield parcel


ALONE = Ranks()


class Split:
    """How the B images of a step lie on the ranks: a part each, in groups that belong together.

    With a source, a rank has a part of either half.
    """

    def __init__(self, ranks: Ranks, batch_size: int, unit: int, domains: int, device: torch.device) -> None:
        """
        Args:
            ranks: connected.
            batch_size: images of a step and a domain.
            unit: images that stay together.
            domains: 1, or 2 with a source.
            device: where features are exchanged.
        """
        shares = ranks.shares(batch_size, unit)
        rows = [np.concatenate([np.arange(batch_size)[own] + d * batch_size for d in range(domains)]) for own in shares]
        self.ranks, self.shares, self.share, self.batch_size = ranks, shares, shares[ranks.rank], batch_size
        self.rows = rows[ranks.rank]  # [b] the places of this rank's images among the B of the step
        self._own = torch.from_numpy(self.rows).to(device)
        self._most = max(map(len, rows))
        place = np.empty(domains * batch_size, np.int64)  # of each image among those that come from all ranks, padded
        for rank, those in enumerate(rows):
            place[those] = rank * self._most + np.arange(len(those))
        self._place = torch.from_numpy(place).to(device)

    def spans(self, group: int) -> bool:
        """Whether a BatchNorm group of `group` contiguous images (0: all of a domain) lies on several ranks."""
        return any(share.start % (group or self.batch_size) for share in self.shares if share.start < share.stop)

    def own(self, x: Tensor) -> Tensor:
        """[B, ...] of the whole step -> [b, ...] of this rank's images."""
        return x if self.ranks.group is None else x[self._own]

    def gather(self, x: Tensor) -> Tensor:
        """[b, ...] of this rank's images -> [B, ...] of the whole step, the same bits on every rank.

        Its gradient is that of this rank's images times the number of ranks: each goes back through its own images
        alone, and the mean over ranks, which DistributedDataParallel takes, is the gradient of the step.
        """
        return x if self.ranks.group is None else _Gather.apply(x, self)

    def collect(self, x: Tensor) -> Tensor:
        """`gather` without a gradient."""
        padded = x.contiguous()
        if len(x) < self._most:
            padded = torch.cat([padded, padded.new_zeros(self._most - len(x), *x.shape[1:])])
        rows = padded.new_empty(self.ranks.size * self._most, *x.shape[1:])
        dist.all_gather(list(rows.chunk(self.ranks.size)), padded, self.ranks.group)
        return rows[self._place]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: Split) -> Tensor:
        ctx.split = split
        return split.collect(x)

    @staticmethod
    def backward(ctx: Any, by_all: Tensor) -> tuple[Tensor, None]:
        return ctx.split.own(by_all) * ctx.split.ranks.size, None


def _edges(n: int, parts: int) -> list[int]:
    """Where n things are cut into parts as equal as can be, larger ones first."""
    return [part * (n // parts) + min(part, n % parts) for part in range(parts + 1)]


@contextmanager
def command() -> Iterator[Ranks]:
    """What a command runs in: exit code 2 and one sentence on bad input, once, whichever ranks met it."""
    with exit_on_user_error():
        ranks = Ranks.from_environment()
        with exit_on_user_error(ranks.leave):
            yield ranks
