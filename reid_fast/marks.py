"""What a setting's type says beyond its type: its range, how it is given, whether a continued run may change it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from reid_fast.errors import UserError


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high` that a setting takes; a bound may be excluded."""

    low: float
    high: float
    above: bool = False  # exclude low
    below: bool = False  # exclude high

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        """What a value must do."""
        low, high = _written(self.low), _written(self.high)
        edges = {
            (False, False): "",
            (True, False): f", {low} excluded",
            (False, True): f", {high} excluded",
            (True, True): ", both excluded",
        }
        return f"lie between {low} and {high}{edges[self.above, self.below]}"


@dataclass(frozen=True)
class PerCore:
    """Threads that each core of this machine may have; where the system gives no more, libraries end the process."""

    most: int

    def __contains__(self, value: float) -> bool:
        return value <= self.most * _cores()

    def __str__(self) -> str:
        """What a value must do."""
        return f"be at most {self.most * _cores()} on this machine, {self.most} for each of its cores"


@dataclass(frozen=True)
class Short:
    """The one-letter flag of a setting, as in the published code."""

    flag: str


class Positional:
    """Marks a setting that is given without a flag."""


class MayChange:
    """Marks a setting that a continued run may change: where and how long it computes, not what."""


# Wide enough for whatever makes sense, and such that nothing computed of them leaves its type.
MOST = 10**9  # of what is counted
LARGEST = 1e6  # of a weight, a temperature, a rate

Count: TypeAlias = Annotated[int, Interval(1, MOST)]
CountOrZero: TypeAlias = Annotated[int, Interval(0, MOST)]
Seed: TypeAlias = Annotated[int, Interval(0, 2**63 - 1)]
Pixels: TypeAlias = Annotated[int, Interval(1, 4096)]
PixelsOrZero: TypeAlias = Annotated[int, Interval(0, 4096)]
Threads: TypeAlias = Annotated[int, Interval(1, 1024), PerCore(16)]
ThreadsOrZero: TypeAlias = Annotated[int, Interval(0, 1024), PerCore(16)]
Positive: TypeAlias = Annotated[float, Interval(1e-9, LARGEST)]
NotNegative: TypeAlias = Annotated[float, Interval(0, LARGEST)]
Share: TypeAlias = Annotated[float, Interval(0, 1)]
Kept: TypeAlias = Annotated[float, Interval(0, 1, below=True)]  # a share of the old that an update keeps
Dropped: TypeAlias = Annotated[float, Interval(0, 1, below=True)]  # a share that training leaves out
Distance: TypeAlias = Annotated[float, Interval(0, 1, above=True, below=True)]  # Jaccard's


def _written(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def marks(settings: type, name: str) -> list[Any]:
    """What the annotations of a field say beyond its type, here and in the classes that declared it before."""
    hints = (_hints(cls)[name] for cls in settings.__mro__ if declares(cls, name))
    return [mark for hint in hints if get_origin(hint) is Annotated for mark in get_args(hint)[1:]]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def types_of(settings: type) -> Mapping[str, Any]:
    """The type of each field, without what else its annotation says; asked for anew, it takes a while."""
    return get_type_hints(settings)


def declares(cls: type, name: str) -> bool:
    """Whether a class itself, not one of its bases, declares a field."""
    return name in _declared(cls)


@cache
def _declared(cls: type) -> frozenset[str]:
    return frozenset(inspect.get_annotations(cls))


def check_ranges(settings: Any) -> None:
    """
    Raises:
        UserError: a number of a dataclass of settings lies outside a range of its field.
    """
    for name, value in vars(settings).items():
        _check_within(flag_of(name), value, marks(type(settings), name))


def check_range(flag: str, value: float | None, kind: Any) -> None:
    """
    Args:
        flag: what gave the value, as the user knows it.
        value: None is in every range.
        kind: an annotated type, such as `Count`.

    Raises:
        UserError: the value lies outside a range of the type.
    """
    if value is not None:
        _check_within(flag, value, get_args(kind)[1:])


def _check_within(flag: str, value: Any, said: Iterable[Any]) -> None:
    for mark in said:
        if isinstance(mark, Interval | PerCore) and value not in mark:
            raise UserError(f"{flag} must {mark}, not {value}")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def flag_of(name: str) -> str:
    """The flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
