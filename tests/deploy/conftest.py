"""A study of two drawn laboratories that train over a network."""

from __future__ import annotations

from tests.experiment.conftest import _one_thread, drawn, tiny, tiny_text

__all__ = ["_one_thread", "drawn", "tiny", "tiny_text"]
