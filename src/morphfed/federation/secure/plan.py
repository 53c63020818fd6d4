"""What is summed, and in what integers: all ends of a unit build the same plan from the study."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from morphfed.algorithms.base import Weighting
from morphfed.core.types import Spec, Tensors
from morphfed.privacy.egress import NUMBER_BYTES, Masked
from morphfed.privacy.secure import fixed
from morphfed.privacy.secure.config import SecureConfig
from morphfed.privacy.secure.keys import Advert
from morphfed.privacy.secure.party import SEALED_BYTES, Terms

MASKED, NUMBERS = "masked", "numbers"
"""What an upload consists of: the weights' changes, and single numbers."""

STEPS = ("keys", "shares", "masked", "opened")
"""Of a session, in order."""

CHANGES, REST, WEIGHT = "changes", "rest", "weight"
"""What a site tells of its upload in the clear, each rounded up to a power of two: the largest change of a trained
weight, the largest of what else travels (running statistics), and its number of training images."""

ADDED = ("weight", "loss", "steps", "images")
"""Single numbers that are summed: the loss times the images that it is a mean of."""


@dataclass(frozen=True)
class Plan:
    """A unit's sums.

    Attributes:
        unit: its key, which goes into every key that is derived.
        sites: that train, in the study's order.
        config: the study's.
        weighting: of the algorithm's mean.
        specs: what an upload of the algorithm holds.
        relative: those of it that are sent as changes against the download.
        trained: those of it that are trained weights or changes by nature; the others have a range of their own.
        purpose: in the algorithm's words, for the ledger.
    """

    unit: str
    sites: tuple[str, ...]
    config: SecureConfig
    weighting: Weighting
    specs: Mapping[str, Spec]
    relative: frozenset[str]
    trained: frozenset[str]
    purpose: str = ""

    @property
    def threshold(self) -> int:
        """t."""
        return self.config.threshold_for(len(self.sites))

    @property
    def length(self) -> int:
        """Numbers of an upload's tensors."""
        return sum(math.prod(spec.shape) for spec in self.specs.values())

    @property
    def declared(self) -> Masked:
        """What the gate lets pass."""
        tensors = {MASKED: Spec((self.length,), f"int{self.config.bits}"), NUMBERS: Spec((len(ADDED),), "int64")}
        return Masked(tensors, frozenset({CHANGES, REST, WEIGHT}), frozenset(self.sites), self.purpose)

    @property
    def nbytes(self) -> int:
        """Bytes that leave a site in a round in which nobody is gone, without proofs of identity."""
        others = len(self.sites) - 1
        keys = 3 * 32 + NUMBER_BYTES * 3
        return self.declared.nbytes + keys + others * SEALED_BYTES + len(self.sites) * 66

    def terms(self, what: str, session: str) -> Terms:
        """Of one session; ``what`` is summed, in the words of :func:`of_round` or :func:`of_row`."""
        return Terms(f"{self.unit}, {what}, session {session}", self.sites, self.threshold)

    def kind(self, name: str) -> str:
        """Which range a tensor is written in."""
        return CHANGES if name in self.trained else REST

    def describe(self) -> dict[str, Any]:
        """For the ledger and ``unit.json``."""
        return {"threshold": self.threshold, "sites": len(self.sites), "bits": self.config.bits}

    def check(self, advert: Advert) -> None:
        """Accept what a site claims of its upload.

        Raises:
            ValueError: another set of claims, or a range beyond the study's; says why.
        """
        if set(advert.claims) != {CHANGES, REST, WEIGHT}:
            raise ValueError("it does not tell its ranges")
        highest = fixed.exponent(self.config.largest)
        for kind in (CHANGES, REST):
            if not fixed.LEAST <= advert.claims[kind] <= highest:
                raise ValueError(f"its range '{kind}' is 2^{advert.claims[kind]}, at most 2^{highest} was agreed")
        if not 0 <= advert.claims[WEIGHT] < 32:
            raise ValueError(f"its weight is at most 2^{advert.claims[WEIGHT]}, expected less than 2^32")


def of_round(round_number: int, download: Tensors) -> str:
    """What is summed in a round: changes against one download.

    Its digest goes into every key. A coordinator that hands one site another model, so that the others' uploads tell
    nothing and the sum is that site's (Pasquini, Francati, Ateniese: Eluding secure aggregation in federated learning
    via model inconsistency, ACM CCS 2022), gets no sum at all.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(download.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {Spec.of(tensor)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"round {round_number} from {found.hexdigest()}"


def of_row(row: Mapping[str, Any], round_number: int) -> str:
    """What is summed outside the rounds: a statistic, at points that are part of the question."""
    asked = hashlib.sha256(json.dumps(dict(row), sort_keys=True).encode()).hexdigest()
    return f"{row['statistic']} after round {round_number}, {asked}"


@dataclass(frozen=True)
class Scales:
    """The integers of one round, as all its sites reckon them from what each of them claimed.

    Attributes:
        steps: kind of tensor → δ, the value of 1.
        total: at least the sum of the sites' weights; a site's share is its weight over this.
    """

    steps: Mapping[str, float]
    total: float

    @classmethod
    def of(cls, plan: Plan, adverts: Mapping[str, Advert]) -> Scales:
        """The smallest ranges that hold every site's upload."""
        steps = {
            kind: fixed.step(max(advert.claims[kind] for advert in adverts.values()), plan.config.bits)
            for kind in (CHANGES, REST)
        }
        return cls(steps, float(sum(2 ** advert.claims[WEIGHT] for advert in adverts.values())))

    def largest(self, kind: str, bits: int) -> float:
        """2^E, the largest value that may be written."""
        return math.ldexp(self.steps[kind], bits - 2)

    def error(self, kind: str, sites: int, weight: float) -> float:
        """The most by which a number of the mean differs from the mean of real numbers.

        Args:
            kind: of tensor.
            sites: that are in the sum.
            weight: of them together.
        """
        return sites * self.steps[kind] / 2 * self.total / weight
