"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.federated import Federation

PROJECT = Path(__file__).resolve().parents[1]


def find_shared() -> Path | None:
    """The folder of real images: ``MORPHFED_SHARED``, else ``../shared/data`` from the project's root."""
    given = os.environ.get("MORPHFED_SHARED")
    folder = Path(given) if given else PROJECT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = find_shared()
    if folder is None:
        pytest.skip("no real images here: set MORPHFED_SHARED or put them in ../shared/data")
    return folder


@pytest.fixture
def federation() -> Callable[..., Federation]:
    """Builds a federation of three tiny sites."""
    return Federation
