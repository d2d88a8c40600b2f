"""What is shipped: a wheel and an sdist of plain files, with the kernels inside the package only."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("pybind11")
ROOT = Path(__file__).parents[1]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
    "csrc",
    "kernels",
    "reid_fast",
)
KERNELS = {f"reid_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
SOURCE = {str(path.relative_to(ROOT)) for path in (ROOT / "reid_fast").glob("**/*.py")}
PYTHON = SOURCE | KERNELS | {"reid_fast/py.typed", "reid_fast/_C.pyi"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clean copy of what a build needs, its link kept as a link."""
    copy = tmp_path_factory.mktemp("build") / "project"
    copy.mkdir()
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=built)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a command that builds: the C++ part alone and not optimised, so that it is quick."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    compiler.chmod(0o755)
    environment = os.environ | {"REID_FAST_CUDA": "0", "CC": str(compiler), "CXX": str(compiler)}

    def finished(*command, **options):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stdout + done.stderr

    return finished


@pytest.fixture(scope="module")
def wheel(run, project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, project)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(run, project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, folder, cwd=project)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.mark.thorough
def test_the_wheel_holds_every_module_once_and_the_extension(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(set(names)) == len(names)
        assert not [info.filename for info in archive.infolist() if info.external_attr >> 28 == 0xA]  # links
    code = {name for name in names if ".dist-info/" not in name}
    (extension,) = code - PYTHON
    assert code >= PYTHON
    assert extension.startswith("reid_fast/_C.")
    assert extension.endswith(".so")


@pytest.mark.thorough
def test_the_installed_wheel_runs_its_extension_away_from_the_sources(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import reid_fast, reid_fast._C, numpy, pathlib\n"
        "assert pathlib.Path(reid_fast._C.__file__).parent == pathlib.Path.cwd() / 'reid_fast'\n"
        "index, _ = reid_fast.knn(numpy.eye(7, dtype='float32'), 3)\n"
        "assert index[:, 0].tolist() == list(range(7))\n"
        "assert reid_fast._C.cuda is False\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_sdist_holds_plain_files_and_all_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("**/*") if path.is_file()}
    assert names >= PYTHON | native | {"pyproject.toml", "setup.py", "LICENSE"}
    assert not [name for name in names if name.startswith("kernels")]


def test_the_kernels_are_one_relative_link_in_the_sources():
    link = ROOT / "reid_fast" / "kernels"
    if not link.is_symlink():
        pytest.skip("these are unpacked sources, where the link has become files")
    assert os.readlink(link) == "../kernels"


def test_the_folder_kernels_is_no_package_of_its_own():
    code = "import kernels"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: import reid_fast.kernels" in done.stderr
