"""Fixtures that several test files use."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Torch's number of threads is after the test what it was before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
