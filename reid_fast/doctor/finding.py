"""What was found about one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """About a package, a device, a kernel.

    Attributes:
        name: of the thing.
        state: "missing" is no fault of an optional thing.
        said: its version and what it can do, or why it cannot.
        way_out: what to do about it, where it is not ok.
        promised: whether a base install promises that it works.
    """

    name: str
    state: State
    said: str
    way_out: str = ""
    promised: bool = False

    @property
    def fault(self) -> bool:
        """Whether a base install does not keep its promise."""
        return self.promised and self.state != "ok"


def probed(name: str, probe: Callable[[], str], way_out: str, *, promised: bool = False) -> Finding:
    """What `probe` says, or what it has raised: whatever a broken installation raises is what is asked for here."""
    try:
        return Finding(name, "ok", probe(), "", promised)
    except ModuleNotFoundError as error:
        return Finding(name, "missing", _line(error), way_out, promised)
    except Exception as error:
        return Finding(name, "broken", f"{type(error).__name__}: {_line(error)}", way_out, promised)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
