"""The table of architectures in the documentation, and the architectures themselves."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import torch

from reid_fast.models import archs
from reid_fast.models.archs import PLAIN

# The families' own: other tests add to the table of all.
FAMILIES = [import_module(f"{archs.__name__}.{module.name}") for module in iter_modules(archs.__path__)]
ARCHS = {name: arch for family in FAMILIES for name, arch in getattr(family, "ARCHS", {}).items()}
PAGE = Path(__file__).parents[3] / "docs/encoders.md"


def test_the_documentation_lists_every_architecture_with_its_size():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) M \| (\d+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    said = {name: (float(millions), int(width), weights != "–") for name, millions, width, weights in rows}
    assert said.keys() == ARCHS.keys()
    for name, (millions, width, has_weights) in said.items():
        with torch.device("meta"):
            backbone = ARCHS[name].build(PLAIN)
        count = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
        assert abs(count - millions) <= (0.05 if millions > 2.5 else 0.005), name
        assert (backbone.c_out, ARCHS[name].weights is not None) == (width, has_weights), name


def test_a_backbone_pools_or_makes_a_map():
    for name, arch in ARCHS.items():
        with torch.device("meta"):
            backbone = arch.build(PLAIN)
            made = backbone.eval()(torch.empty(2, 3, 256, 128))
        assert made.shape[:2] == (2, backbone.c_out), name
        assert (made.ndim == 2) == backbone.pools, name
