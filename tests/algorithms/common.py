"""Uploads and layouts by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from morphfed.algorithms.base import ALGORITHMS, CoordinatorHalf
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

WEIGHTS, STATISTICS = ("w", "b"), ("mean",)


def layout() -> Layout:
    """Two weights and one running statistic."""
    return Layout((*WEIGHTS, *STATISTICS), frozenset(WEIGHTS), frozenset(STATISTICS), frozenset(), frozenset())


def model(w: Sequence[float], b: float = 0.0, mean: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensors:
    return {
        "w": torch.tensor(w, dtype=dtype),
        "b": torch.tensor([b], dtype=dtype),
        "mean": torch.tensor([mean], dtype=dtype),
    }


def coordinator(name: str, initial: Tensors, **keys: object) -> CoordinatorHalf:
    named = ALGORITHMS[name]
    return named.coordinator(named.config(**keys), initial, layout())


def one_round(half: CoordinatorHalf, models: Sequence[Tensors], weights: Sequence[float], number: int = 1) -> Tensors:
    sites = [f"s{i}" for i in range(len(models))]
    half.begin_round(number, sites)
    for site, tensors, weight in zip(sites, models, weights, strict=True):
        half.fold(Upload(site, number, {k: v.clone() for k, v in tensors.items()}, weight))
    half.end_round()
    return half.model()
