"""Builds `reid_fast._C`: pybind11 only, so neither torch nor build isolation flags are needed.

The CUDA stages are built in where nvcc is found; REID_FAST_CUDA=0 leaves them out, REID_FAST_CUDA=1 insists on them.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
CUDA_SOURCES = sorted(Path("csrc/cuda").glob("*.cu"))


def find_nvcc() -> Path | None:
    """nvcc on the path or in CUDA_HOME, unless REID_FAST_CUDA=0."""
    wish = os.environ.get("REID_FAST_CUDA", "")
    if wish == "0":
        return None
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc"
    nvcc = shutil.which("nvcc") or (home if home.exists() else None)
    if wish == "1" and nvcc is None:
        raise SystemExit("REID_FAST_CUDA=1, but nvcc is neither on the path nor in CUDA_HOME")
    return nvcc and Path(nvcc)


def nvcc_command(nvcc: Path) -> list[str]:
    """The compiler call for every architecture this nvcc knows, and PTX for the ones to come; sources follow."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = [arch for arch in ARCHITECTURES if f"compute_{arch}" in listed]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    targets.append(f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}")
    flags = ["-O3", "-std=c++17", "--extended-lambda", "--threads=0", "-Icsrc", "-Xcompiler=-fPIC,-O3"]
    return [str(nvcc), *flags, *targets]


def library_folders(nvcc: Path) -> list[str]:
    """Where this nvcc would link the CUDA runtime from."""
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    libraries = next(line for line in plan.stderr.splitlines() if "LIBRARIES=" in line)
    return re.findall(r'"-L([^"]+)"', libraries)


class Build(build_ext):
    """`build_ext` that compiles the CUDA sources first and links their objects in."""

    def build_extension(self, extension: Pybind11Extension) -> None:
        """Compile with nvcc where it is found, then the C++ sources."""
        if nvcc := find_nvcc():
            folder = Path(self.build_temp) / "cuda"
            folder.mkdir(parents=True, exist_ok=True)
            objects = [folder / f"{source.stem}.o" for source in CUDA_SOURCES]
            for source, out in zip(CUDA_SOURCES, objects, strict=True):
                if subprocess.run([*nvcc_command(nvcc), "-c", str(source), "-o", str(out)]).returncode:
                    raise SystemExit(f"{nvcc} cannot compile {source}; REID_FAST_CUDA=0 builds without CUDA")
            extension.extra_objects += map(str, objects)
            extension.define_macros.append(("REID_WITH_CUDA", None))
            extension.library_dirs += library_folders(nvcc)
            extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        super().build_extension(extension)


if __name__ == "__main__":
    sources = ["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
    flags = ["-O3", "-Wall", "-Wextra"]
    # What the sources include, and what only nvcc compiles: in the sdist, and a reason to build again.
    depends = [str(path) for pattern in ("*.h", "*.cu") for path in sorted(Path("csrc").rglob(pattern))]
    extension = Pybind11Extension(
        "reid_fast._C", sources, depends=depends, include_dirs=["csrc"], cxx_std=17, extra_compile_args=flags
    )
    with ParallelCompile():
        setup(ext_modules=[extension], cmdclass={"build_ext": Build})
