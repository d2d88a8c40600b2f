"""Unsupervised person re-identification, from a folder of images to ranked lists.

A command is one file in this folder, found by listing it: its docstring's first line is what the list of commands says
of it, and `main(argv)` runs it. A folder is a command whose commands lie in it. Nothing is imported but what runs.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import reid_fast
from reid_fast.errors import UserError

__all__ = ["command_names", "dispatch"]


def command_names(*group: str) -> list[str]:
    """What may be typed behind `reid-fast`, or behind a command that has commands of its own.

    Args:
        group: the words before it: none, or such as `data`.
    """
    package = import_module(_module(group))
    return sorted(module.name.replace("_", "-") for module in iter_modules(package.__path__))


def dispatch(argv: Sequence[str], *group: str) -> None:
    """Run the command that stands first, with the rest as its flags; without one, or with `--help`, list them.

    Args:
        argv: what follows `group`.
        group: the words before it.

    Raises:
        UserError: there is no such command.
    """
    program = " ".join(("reid-fast", *group))
    name, *flags = [*argv] or ["--help"]
    if name in ("-h", "--help"):
        print(_help(program, group))
    elif name == "--version" and not group:
        print(f"reid-fast {reid_fast.__version__}")
    elif name not in command_names(*group):
        near = difflib.get_close_matches(name, command_names(*group), 1)
        way_out = f"did you mean {near[0]}?" if near else f"{program} --help lists what there is"
        raise UserError(f"{program} has no command {name!r}: {way_out}")
    else:
        command = import_module(_module((*group, name)))
        if hasattr(command, "__path__"):
            dispatch(flags, *group, name)
        else:
            with _as_program(f"{program} {name}", flags):
                command.main(flags)


@contextmanager
def _as_program(name: str, flags: Sequence[str]) -> Iterator[None]:
    """Inside, the process has the name and the arguments of one command: usage and a run's config.json tell them."""
    before = sys.argv
    sys.argv = [name, *flags]
    try:
        yield
    finally:
        sys.argv = before


def _help(program: str, group: Sequence[str]) -> str:
    names = command_names(*group)
    wide = max(map(len, names))
    lines = [f"  {name:<{wide}}  {_summary((*group, name))}" for name in names]
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            _summary(group),
            "",
            *lines,
            "",
            f"{program} COMMAND --help lists the settings of a command.",
        ]
    )


def _summary(command: Sequence[str]) -> str:
    """The first line of a command's docstring, read without importing it."""
    spec = find_spec(_module(command))
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as source:
        said = ast.get_docstring(ast.parse(source.read()))
    assert said, f"{spec.origin} says nothing of its command"
    return said.splitlines()[0]


def _module(command: Sequence[str]) -> str:
    return ".".join((__name__, *(word.replace("-", "_") for word in command)))
