"""Two sets of drawn people, to train on and to learn from too."""

import pytest

from reid_fast.data.synthetic import synthetic_folder


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Other people than those of `people`."""
    return synthetic_folder(tmp_path_factory.mktemp("others"), train_ids=12, test_ids=2, seed=7)
