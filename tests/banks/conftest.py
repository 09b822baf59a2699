"""What all tests of banks have in common."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="package")
def _without_waiting_for_the_disk() -> Iterator[None]:
    """None looks at a disk after a power cut; programs that are killed have own processes."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield
