"""Inputs with the neighbour structure of re-ID features: identities in groups that look alike, strays, low rank."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

PER_IDENTITY = 24
LATENT = 48


def planted_features(n: int, width: int = 2048, seed: int = 0) -> tuple[Tensor, Tensor]:
    """L2-normalised rows [N, D] as a ReLU network leaves them, by identity, and identities [N]; a tenth are strays."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    identities = max(1, n // PER_IDENTITY)
    alike = normal(max(1, identities // 12), LATENT)
    centres = alike[torch.randint(len(alike), (identities,), generator=generator)] + 0.9 * normal(identities, LATENT)
    identity = torch.randint(identities, (n,), generator=generator).sort().values
    spread = 0.4 + 0.5 * torch.rand(n, 1, generator=generator)
    latent = centres[identity] + spread * normal(n, LATENT)
    strays = torch.rand(n, generator=generator) < 0.1
    latent[strays] += 1.2 * normal(int(strays.sum()), LATENT)
    projection = normal(LATENT, width) / LATENT**0.5
    rows = torch.empty(n, width)
    for block, out in zip(latent.split(4096), rows.split(4096), strict=True):
        out.copy_(normalize(torch.relu(block @ projection + 0.3 + 0.1 * normal(len(block), width))))
    return rows, identity


def random_people(n: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised rows [N, D] without structure, identities and cameras [N]: to be ranked."""
    generator = torch.Generator().manual_seed(seed)
    pids, cams = (torch.randint(most, (n,), generator=generator) for most in (200, 15))
    return normalize(torch.randn(n, width, generator=generator)), pids, cams


def planted_neighbours(n: int, k: int = 30, width: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in far-apart groups of eight identities, shuffled, and their kNN, found group by group.

    Returns:
        L2-normalised rows [N, D], index [N, K] int32, similarity [N, K] float32; N is `n` rounded up to whole groups.
    """
    generator = torch.Generator().manual_seed(seed)
    identity = torch.arange(8 * PER_IDENTITY) // PER_IDENTITY
    groups = -(-n // len(identity))
    place = torch.randperm(groups * len(identity), generator=generator).view(groups, -1)
    rows = torch.empty(place.numel(), width)
    index = torch.empty(place.numel(), k, dtype=torch.int32)
    similarity = torch.empty(place.numel(), k)
    for own in place.split(64):
        centres = torch.randn(len(own), 1, width, generator=generator)
        centres = centres + 0.5 * torch.randn(len(own), 8, width, generator=generator)
        group = centres[:, identity] + 0.35 * torch.randn(*own.shape, width, generator=generator)
        group = normalize(group, dim=2)
        scores = group @ group.transpose(1, 2)
        diagonal = scores.diagonal(dim1=1, dim2=2)
        to_itself = diagonal.clone()
        diagonal.fill_(torch.inf)
        best, column = scores.topk(k, dim=2)
        best[:, :, 0] = to_itself
        rows[own] = group
        index[own] = own[:, None].expand(-1, own.shape[1], -1).gather(2, column).int()
        similarity[own] = best
    return rows, index, similarity
