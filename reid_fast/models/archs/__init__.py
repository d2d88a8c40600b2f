"""The architectures: one file a family, found by listing this folder, each with a table `ARCHS` of its own."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from reid_fast.models.archs.arch import PLAIN, Arch, Backbone, Options

__all__ = ["ARCHS", "PLAIN", "Arch", "Backbone", "Options"]

# What `--arch` takes, by name.
ARCHS: dict[str, Arch] = {
    name: arch
    for module in iter_modules(__path__)
    if module.name != "arch"
    for name, arch in import_module(f"{__name__}.{module.name}").ARCHS.items()
}
