"""Builds `reid_fast._C`: pybind11 only, so neither torch nor build isolation flags are needed."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

sources = ["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
extension = Pybind11Extension(
    "reid_fast._C", sources, include_dirs=["csrc"], cxx_std=17, extra_compile_args=["-O3", "-Wall", "-Wextra"]
)
with ParallelCompile():
    setup(ext_modules=[extension], cmdclass={"build_ext": build_ext})
