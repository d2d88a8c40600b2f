"""Infomap in a process of its own: `python infomap_process.py LINKS.npy MODULES.npy`.

Its bindings and those of faiss, both made by SWIG, take each other's iterators for their own and crash in one process.
"""

from __future__ import annotations

import sys

import numpy as np
from infomap import Network


def main(links: str, modules: str) -> None:
    """Read links [E, 3] (from, to, weight), write (node, module) [n, 2] int64."""
    network = Network()
    network.add_links(np.load(links))
    found = network.run(two_level=True, directed=True, seed=1).modules()
    np.save(modules, np.array(list(found.items()), dtype=np.int64))


if __name__ == "__main__":
    main(*sys.argv[1:])
