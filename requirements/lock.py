"""Writes the files of this folder: every package that `make` installs, pinned, with the SHA-256 of each of its files.

Run by `make lock` after a change of constraints.txt or of the dependencies in pyproject.toml.

- test.txt: everything but torch;
- torch.txt: torch, as the package index has it and as its CPU build;
- torch-cuda.txt: the libraries that the former needs, and the CPU build does not.
"""

import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
UV = ["uv", "pip", "compile", "pyproject.toml", "--extra", "test", "--constraint", "constraints.txt"]
UV += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
# torch-2.13.0+cpu for Python 3.11 on x86_64; others may be added.
CPU_BUILDS = ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]


def part_of(name: str) -> str:
    """The file for a package. DALI has libraries of CUDA 12, this torch has those of CUDA 13."""
    if name == "torch":
        return "torch.txt"
    return "torch-cuda.txt" if re.match(r"cuda-|nvidia-(?!.*-(cu12|cuda120)$)", name) else "test.txt"


def main() -> None:
    """Resolve for all platforms at once, and write the parts."""
    done = subprocess.run(UV, cwd=FOLDER.parent, check=True, capture_output=True, text=True)
    parts: dict[str, str] = {}
    for block in re.findall(r"^\S.*(?:\n[ ].*)*\n", done.stdout, re.MULTILINE):
        name = block.partition("==")[0]
        if name == "torch":
            block = block.rstrip("\n") + "".join(f" \\\n    --hash=sha256:{digest}" for digest in CPU_BUILDS) + "\n"
        parts[part_of(name)] = parts.get(part_of(name), "") + block
    for file, content in parts.items():
        (FOLDER / file).write_text(content)


if __name__ == "__main__":
    main()
