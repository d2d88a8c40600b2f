"""`import reid_fast`: what it offers, and that it costs nothing before it is used."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import reid_fast

EACH_ALONE = """
import os, sys
import scipy.sparse, sklearn, torch  # what takes seconds; none of it knows reid_fast
for name in sys.argv[1:]:
    if os.fork() == 0:
        import reid_fast
        os._exit(getattr(reid_fast, name) is None or name not in dir(reid_fast))
    if os.wait()[1]:
        sys.exit(f"{name} is not there")
"""


def test_every_public_name_is_there_after_a_bare_import():
    command = [sys.executable, "-c", EACH_ALONE, *reid_fast.__all__]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bare_import_loads_neither_torch_nor_the_extension():
    code = "import sys, reid_fast; assert not {'torch', 'numpy', 'reid_fast._C', 'reid_fast.ops'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'knm'"):
        reid_fast.knm  # noqa: B018


def test_the_version_is_the_installed_one():
    assert reid_fast.__version__ == version("reid-fast")


@pytest.mark.parametrize("room", ["ops", "clustering", "compat", "memories", "methods"])
def test_all_of_a_room_is_true(room):
    module = __import__(f"reid_fast.{room}", fromlist=["__all__"])
    assert all(hasattr(module, name) for name in module.__all__)
