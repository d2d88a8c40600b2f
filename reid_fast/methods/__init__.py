"""The systems of the papers: one file a method, found by listing this folder."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from reid_fast.methods.base import Method


def method_names() -> list[str]:
    """What `--method` takes: the names of the files beside this one, apart from `base`."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def method_class(name: str) -> type[Method]:
    """The one subclass of `Method` that the file `name` defines."""
    module = import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )
