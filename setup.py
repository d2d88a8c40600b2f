"""Builds `reid_fast._C`: pybind11 only, so neither torch nor build isolation flags are needed."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

sources = ["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
setup(
    ext_modules=[
        Pybind11Extension(
            "reid_fast._C", sources, include_dirs=["csrc"], cxx_std=17, extra_compile_args=["-O3"]
        )
    ],
    cmdclass={"build_ext": build_ext},
)
