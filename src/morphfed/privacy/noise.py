"""Noise on what a site uploads, added at the site, before anything is coded or passes the gate.

* ``as_published``: each trained tensor W gets ``α std(W) N(0, 1)``, std over the numbers of that tensor, as in the code
  of HistoFL (Lu et al., Medical Image Analysis 76:102298, 2022). The scale follows the private weights, nothing is
  clipped and biases go clean, so there is *no* (ε, δ), whatever α.
* ``calibrated``: the Gaussian mechanism. The site's whole change ``u``, all trained tensors end to end, becomes
  ``u min(1, C / ‖u‖) + N(0, (z C)² I)`` (Abadi et al., Deep learning with differential privacy, CCS 2016; for a
  participant's whole update McMahan et al., Learning differentially private recurrent language models, ICLR 2018).

The unit of privacy is a **site**: neighbours are a site's data and any other data in their place. Two clipped changes
differ by at most 2 C, so a release has the noise multiplier ``z / 2`` (``privacy.accounting``), towards everybody who
sees the upload, the coordinator included. It says nothing finer about a single patient than about the whole site.

A code (``federation.upload``) and its error feedback come after the noise: they are functions of what was noised
already and cost nothing. Before it, what a code leaves out would keep clean changes at the site and send them later.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from morphfed.core.config import Config
from morphfed.core.errors import TrainingError
from morphfed.core.seeding import derive
from morphfed.core.types import Tensors
from morphfed.privacy.accounting import epsilon

_KEYS = {
    "none": set[str](),
    "as_published": {"alpha", "biases", "draw"},
    "calibrated": {"clip", "multiplier", "delta", "draw"},
}


class NoiseConfig(Config):
    """Noise on what travels."""

    kind: Literal["none", "as_published", "calibrated"] = Field(
        "none",
        description="as_published: in proportion to each tensor's own spread (HistoFL), no formal guarantee; "
        "calibrated: the site's change clipped, Gaussian noise, (ε, δ) counted; extra privacy",
    )
    alpha: float = Field(0.001, ge=0, description="α, noise over the tensor's standard deviation; of as_published")
    biases: bool = Field(False, description="biases too; published: not; of as_published")
    clip: float | None = Field(
        None, gt=0, description="C, largest norm of a site's change; of calibrated, required there"
    )
    multiplier: float | None = Field(
        None, gt=0, description="z, standard deviation of the noise over C; of calibrated, required there"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="δ at which ε is told; of calibrated")
    draw: Literal["study", "secret"] = Field(
        "study",
        description="study: from the study's seed, so that a run repeats, and who knows the seed can subtract it; "
        "secret: from the operating system, so that a run does not repeat",
    )

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.kind == "none":
            return self
        for key in type(self).model_fields:
            if key not in {"kind", *_KEYS[self.kind]} and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' is no key of kind = '{self.kind}'; leave it out")
        if self.kind == "calibrated" and (self.clip is None or self.multiplier is None):
            raise ValueError("kind = 'calibrated' needs clip and multiplier, such as clip = 1.0 and multiplier = 2.0")
        return self


def is_bias(name: str) -> bool:
    """Whether a state-dict key is of a bias, as HistoFL tells them: by its name."""
    return "bias" in name.rpartition(".")[2]


def spread_noise(tensor: torch.Tensor, alpha: float, seed: int) -> torch.Tensor:
    """``α std(W) N(0, 1)`` in the shape, dtype and place of W; std over its numbers, 0 for a single one."""
    return _normal(tensor, seed) * (alpha * tensor.std(correction=0))


def _normal(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Drawn on the processor, so that the same seed gives the same numbers wherever the tensor is."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype).to(like.device)


class Noise:
    """One arm's noise, the same at every site.

    Args:
        config: the study's, not ``none``.
        weights: trained weights that travel both ways: noised as changes against the download.
        changes: tensors of an upload that are changes by nature, such as a control variate's.
        seed: of the study.
    """

    def __init__(
        self, config: NoiseConfig, *, weights: Collection[str], changes: Collection[str] = (), seed: int = 0
    ) -> None:
        self.config = config
        self._weights, self._changes, self._seed = frozenset(weights), frozenset(changes), seed

    @torch.no_grad()
    def add(self, tensors: Tensors, download: Tensors, *, site: str, round_number: int) -> Tensors:
        """What the site sends in place of ``tensors``; those that get no noise are the same objects.

        Args:
            tensors: the algorithm's upload, references into the network, which stay as they are.
            download: of this round, as the site opened it.
            site, round_number: name the draws.

        Raises:
            TrainingError: a change that is not finite.
        """
        seeds = {name: self._draw(site, round_number, name) for name in tensors}
        if self.config.kind == "as_published":
            mine = [n for n in tensors if n in self._weights | self._changes and (self.config.biases or not is_bias(n))]
            return tensors | {n: tensors[n] + spread_noise(tensors[n], self.config.alpha, seeds[n]) for n in mine}
        clip, std = self._calibrated()
        moved = {n: tensors[n] - download[n] for n in tensors if n in self._weights}
        moved |= {n: tensors[n] for n in tensors if n in self._changes}
        norm = float(
            torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t).double() for t in moved.values()]))
        )
        if not norm < float("inf"):
            raise TrainingError(
                f"Site '{site}', round {round_number}: the change of its model is not finite; nothing was sent.",
                fix="lower train.lr, or set train.clip = 1.0.",
            )
        factor = min(1.0, clip / norm) if norm else 1.0
        noised = {n: t * factor + _normal(t, seeds[n]) * std for n, t in moved.items()}
        return tensors | {n: download[n] + t if n in self._weights else t for n, t in noised.items()}

    def _draw(self, site: str, round_number: int, name: str) -> int:
        if self.config.draw == "secret":
            return int.from_bytes(os.urandom(8), "big") >> 1
        return derive(self._seed, "noise", site, round_number, name)

    def _calibrated(self) -> tuple[float, float]:
        """C and z C."""
        assert self.config.clip is not None
        assert self.config.multiplier is not None
        return self.config.clip, self.config.clip * self.config.multiplier

    def spent(self, rounds: int) -> float | None:
        """ε of a site that has sent ``rounds`` uploads; None: there is no guarantee.

        Raises:
            MissingExtraError: the accounting library is not installed.
        """
        if self.config.kind != "calibrated":
            return None
        assert self.config.multiplier is not None
        return epsilon(self.config.multiplier / 2, rounds, self.config.delta)

    def describe(self, rounds: int) -> dict[str, Any]:
        """For the ledger and ``unit.json``: what was added, and what ``rounds`` uploads of a site have spent."""
        if self.config.kind == "as_published":
            told: dict[str, Any] = {"alpha": self.config.alpha, "biases": self.config.biases}
        else:
            clip, std = self._calibrated()
            told = {"clip": clip, "std": std, "unit": "site", "delta": self.config.delta}
        return {"kind": self.config.kind, **told, "epsilon": self.spent(rounds), "draw": self.config.draw}
