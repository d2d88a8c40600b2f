"""The systems of the papers: one file a method, found by listing this folder."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import get_type_hints

from reid_fast.config import Config
from reid_fast.data.sets import TrainingSet
from reid_fast.methods.base import Method

__all__ = ["Method", "method_class", "method_names", "new_method", "settings_class"]


def method_names() -> list[str]:
    """What `--method` takes: the names of the files beside this one, apart from what they share."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in ("base", "settings"))


def method_class(name: str) -> type[Method]:
    """The one subclass of `Method` that the file `name` defines."""
    module = import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )


def new_method(config: Config, images: TrainingSet) -> Method:
    """The method that a config names, with its initial weights.

    Raises:
        TypeError: the config is another method's, or the engine's alone.
        UserError: see `Method`.
    """
    settings = settings_class(config.method)
    if not isinstance(config, settings):
        raise TypeError(
            f"method {config.method} takes its settings as {settings.__name__}, not {type(config).__name__}"
        )
    return method_class(config.method)(config, images)


def settings_class(name: str) -> type[Config]:
    """The dataclass of the settings that the method `name` reads: the type of its `config`."""
    return get_type_hints(method_class(name))["config"]
