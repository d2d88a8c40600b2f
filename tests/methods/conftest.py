"""Methods under test get an encoder that only normalises."""

import pytest
from stubs import RawEncoder

from reid_fast.methods.base import Method


@pytest.fixture
def raw_encoder(monkeypatch):
    monkeypatch.setattr(Method, "new_encoder", lambda self: RawEncoder())
