"""Images of a list of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset


class Preprocessor(Dataset):
    """(image, name, identity, camera, index) of each (name, identity, camera)."""

    def __init__(
        self,
        dataset: Sequence[tuple[str, int, int]],
        root: str | None = None,
        transform: Callable[[Image.Image], Any] = lambda image: image,
    ) -> None:
        self.dataset, self.root, self.transform = dataset, root, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, str, int, int, int]:
        name, pid, cam = self.dataset[index]
        image = Image.open(Path(self.root or "", name)).convert("RGB")
        return self.transform(image), name, pid, cam, index
