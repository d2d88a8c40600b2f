"""The steps of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ClusterContrastTrainer:
    """Trains an encoder against a memory."""

    def __init__(self, encoder: nn.Module, memory: nn.Module | None = None) -> None:
        self.encoder, self.memory = encoder, memory

    def train(
        self, epoch: int, data_loader: Any, optimizer: torch.optim.Optimizer, print_freq: int, train_iters: int
    ) -> None:
        """Take the steps, and look at the loss after each."""
        self.encoder.train()
        for _ in range(train_iters):
            images, _, labels, *_ = data_loader.next()
            loss = self.memory(self.encoder(images.cuda()), labels.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
