"""`--knn`: the search that the clustering stage uses."""

import numpy as np
import torch

from reid_fast.clock import Clock
from reid_fast.labels.neighbours import find_neighbours


def test_approximate_search_says_what_it_missed():
    centres = np.random.default_rng(0).normal(size=(40, 1, 16))
    rows = (centres + 0.2 * np.random.default_rng(1).normal(size=(40, 20, 16))).reshape(800, 16)
    features, said, clock = torch.from_numpy(rows).float(), [], Clock(torch.device("cpu"))
    exact, _ = find_neighbours(features, 10, clock, say=said.append)
    assert said == []
    close, _ = find_neighbours(features, 10, clock, search="ivf", say=said.append)
    assert len(said) == 1
    assert "% of the true ones found" in said[0]
    assert (exact.numpy() == close).mean() > 0.95
    assert set(clock) == {"knn"}
