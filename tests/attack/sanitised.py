"""The extension built with the address and undefined-behaviour sanitisers, in a process of Python's own tests.

`python tests/attack/sanitised.py` builds it and runs the tests of the clustering on it; as a plugin of pytest, `-p
sanitised`, it takes the place of the extension that is installed.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

TESTS = Path(__file__).parents[1]
BUILD = TESTS.parent / "build/sanitised"
FLAGS = ["-O1", "-fPIC", "-fvisibility=hidden", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# These compile programs of their own, some of them with sanitisers.
LEFT_OUT = ["test_engine.py", "test_cuda_sources.py", "test_device_border.py"]
# These measure or limit memory, of which a sanitiser takes as much as what it watches.
MEASURED = [
    "tests/clustering/test_jaccard.py::test_memory_grows_with_the_graph_and_not_with_its_square",
    "tests/clustering/test_rerank.py::test_no_matrix_of_all_pairs_is_formed",
    "tests/attack/test_extension.py::test_the_work_is_done_by_the_threads_that_can_be_had",
]


def build():
    """The path of the extension."""
    import pybind11

    sys.path.append(str(TESTS / "clustering"))
    from engine_build import CPU_SOURCES, CSRC, objects

    headers = [f"-I{folder}" for folder in (pybind11.get_include(), sysconfig.get_path("include"))]
    # What ships chooses between its vector variants at run time, and so does this.
    parts = objects([CSRC / "bindings.cpp", *CPU_SOURCES], BUILD, [*FLAGS, *headers, "-UREID_NO_VARIANTS"])
    out = BUILD / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", *FLAGS, "-shared", *parts, "-o", out], check=True)
    return out


def libraries():
    """What has to be loaded before Python, which is not linked to it."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    return " ".join(str(Path(path).resolve()) for path in found)


def main():
    env = os.environ | {
        "SANITISED": str(build()),
        "LD_PRELOAD": libraries(),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(TESTS.parent)]),
        "PYTHONMALLOC": "malloc",  # arrays and objects have guarded borders too
        # What Python keeps until its end are no leaks; what asks for more memory than there is, is told so.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    ignored = [f"--ignore={TESTS / 'clustering' / name}" for name in LEFT_OUT]
    ignored += [f"--deselect={name}" for name in MEASURED]
    tests = sys.argv[1:] or [TESTS / "clustering", TESTS / "attack/test_extension.py", *ignored]
    command = [sys.executable, "-m", "pytest", "-p", "sanitised", "-p", "no:cacheprovider", *map(str, tests)]
    sys.exit(subprocess.run(command, env=env, cwd=TESTS.parent).returncode)


if __name__ == "__main__":
    main()
elif built := os.environ.get("SANITISED"):
    spec = importlib.util.spec_from_file_location("reid_fast._C", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["reid_fast._C"] = module
