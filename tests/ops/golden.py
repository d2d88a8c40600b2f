"""The inputs of the golden values: Φ(n, s)[i, j] = sin(s + 1.7 i + 0.9 j + 0.31 i j), eight columns."""

import torch
import torch.nn.functional as F


def phi(n, s, width=8):
    i, j = torch.arange(n)[:, None].double(), torch.arange(width).double()
    return torch.sin(s + 1.7 * i + 0.9 * j + 0.31 * i * j).float()


def unit_phi(n, s, width=8):
    return F.normalize(phi(n, s, width))


def near(actual, expected, atol=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.tensor(expected), atol=atol, rtol=1e-5, check_device=False
    )
