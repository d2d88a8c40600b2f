"""Tests marked `gpu` run where there is a CUDA device; elsewhere kernels run in Triton's interpreter."""

import os

import pytest
import torch

# Triton decides when a kernel is defined, so this stands before the first kernel import of the whole run.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
