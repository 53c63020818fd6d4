"""The egress gate: nothing leaves a site but what was declared before training.

A gate belongs to one site. It knows the names, shapes and types of the tensors, and the names of the numbers, that
the study's algorithm declared; everything else is refused. What passes is written to a ledger, one line an upload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import PrivacyError
from morphfed.core.types import Spec, Tensors, Upload, nbytes
from morphfed.privacy.ledger import NUMBER_BYTES as NUMBER_BYTES
from morphfed.privacy.ledger import Ledger, LineLedger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from morphfed.privacy.ledger import Value


@dataclass(frozen=True)
class Statistic:
    """A row of sums or counts over a site's images that may leave it outside the rounds.

    Attributes:
        length: how many numbers.
        purpose: what the coordinator does with their sum over the sites.
    """

    length: int
    purpose: str


Place = tuple[str, ...]
"""Where a number stands in a tree of them: keys from the outside in, ``#`` for any place of a list."""


@dataclass(frozen=True)
class Findings:
    """Numbers, and rows of them, over all of a site's images of one part that may leave it outside the rounds.

    Attributes:
        numbers: where a number may stand → how many there may be at most.
        rows: name → shape and dtype.
        purpose: what the coordinator does with them.
    """

    numbers: Mapping[Place, int]
    rows: Mapping[str, Spec]
    purpose: str

    @property
    def nbytes(self) -> int:
        """Bytes, if all of them leave."""
        return NUMBER_BYTES * sum(self.numbers.values()) + sum(spec.nbytes for spec in self.rows.values())

    def objection(self, tree: object, rows: Tensors) -> str:
        """What of a tree and rows is not declared, for people; empty: nothing."""
        found: dict[Place, int] = {}
        for path, value in leaves(tree):
            where = "/".join(path)[:80]
            if not (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
                if value in ({}, []) and any(known[: len(path)] == path for known in self.numbers):
                    continue
                return f"a {type(value).__name__} at '{where}'"
            found[path] = found.get(path, 0) + 1
            if found[path] > self.numbers.get(path, 0):
                return f"{'one more' if path in self.numbers else 'a'} number at '{where}'"
        for name, tensor in rows.items():
            spec = self.rows.get(name)
            if spec is None:
                return f"the row '{name[:80]}'"
            if spec != Spec.of(tensor):
                return f"the row '{name[:80]}' as {Spec.of(tensor)} where {spec} is declared"
        return ""


def leaves(tree: object, path: Place = ()) -> Iterator[tuple[Place, object]]:
    """Every leaf of nested tables and lists with its place; an empty table or list is one too."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(tree, list) and tree:
        for value in tree:
            yield from leaves(value, (*path, "#"))
    else:
        yield path, tree


@dataclass(frozen=True)
class Masked:
    """What may leave a site where the study sends sums only: no upload, but what a secure sum is made of.

    Attributes:
        tensors: name → shape and dtype of an upload's integers under their masks.
        numbers: names of the numbers that go in the clear.
        sites: names of the sites for which, and of whose secrets, shares may leave.
        purpose: why, in the words of the study's algorithm.
    """

    tensors: Mapping[str, Spec]
    numbers: frozenset[str]
    sites: frozenset[str]
    purpose: str

    @property
    def nbytes(self) -> int:
        """Bytes of a masked upload."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def allows(self, step: str, name: str, spec: Spec, row: int | None) -> bool:
        """Whether a tensor of this name may leave in a step; ``row``: length of the statistic that is summed."""
        if step == "masked" and row is not None:
            return (name, spec) == ("numbers", Spec((row,), "int64"))
        if step == "masked":
            return self.tensors.get(name) == spec
        if spec.dtype != "uint8" or len(spec.shape) != 1:
            return False
        way, _, site = name.partition("/")
        if step == "keys":
            return name in _OF_KEYS and spec.shape[0] <= _OF_KEYS[name]
        return {"shares": "to", "opened": "of"}.get(step) == way and site in self.sites and spec.shape[0] <= _SHARE


_OF_KEYS = {"sealing": 32, "masking": 32, "commitment": 32, "signature": 256, "certificate": 4096}
_SHARE = 256  # bytes of a sealed pair of shares, or of one share


@dataclass(frozen=True)
class Declaration:
    """What may leave a site in one upload.

    Attributes:
        tensors: name → shape and dtype.
        metrics: names of the numbers (counts and means) that may go with them.
        purpose: why, in the words of the study's algorithm.
        validation: names of the means that may leave after a round's validation.
        statistics: rows of sums that may leave outside the rounds, by name.
        findings: trees of numbers that may leave outside the rounds, by name.
        masked: in place of uploads, which then do not leave at all; None: uploads leave as they are.
    """

    tensors: Mapping[str, Spec]
    metrics: frozenset[str]
    purpose: str
    validation: frozenset[str] = frozenset()
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    findings: Mapping[str, Findings] = field(default_factory=dict)
    masked: Masked | None = None


class EgressGate:
    """Lets declared uploads pass and records them.

    Args:
        site: whose gate this is.
        declaration: the allow-list.
        ledger: keeps what passes, before it leaves; a path: a file that gets one JSON line an upload; None: no file.
    """

    def __init__(self, site: str, declaration: Declaration, ledger: Path | Ledger | None) -> None:
        self._site, self._declaration = site, declaration
        self._ledger: Ledger | None = LineLedger(ledger) if isinstance(ledger, Path) else ledger

    def release(self, upload: Upload, *, noise: Mapping[str, object] | None = None) -> Upload:
        """Return ``upload`` unchanged if all of it is declared.

        Args:
            upload: what is to leave.
            noise: what was added to it, in words and numbers, for the ledger; None: nothing.

        Raises:
            PrivacyError: something undeclared, of another shape or type, or of another site; nothing has left.
        """
        if upload.site != self._site:
            raise self._refusal(f"an upload in the name of '{upload.site}'")
        if self._declaration.masked is not None:
            raise self._refusal("an upload without masks")
        for name, tensor in upload.tensors.items():
            spec = self._declaration.tensors.get(name)
            if spec is None:
                raise self._refusal(f"tensor '{name}'")
            if spec != Spec.of(tensor):
                raise self._refusal(f"tensor '{name}' as {Spec.of(tensor)} where {spec} is declared")
        for name in upload.metrics:
            if name not in self._declaration.metrics:
                raise self._refusal(f"number '{name}'")
        self._record(upload, noise)
        return upload

    def release_step(
        self,
        step: str,
        round_number: int,
        tensors: Tensors,
        numbers: Mapping[str, int],
        *,
        about: Mapping[str, object],
        statistic: str | None = None,
        noise: Mapping[str, object] | None = None,
    ) -> None:
        """Record what leaves in one step of a secure sum.

        Args:
            step: ``keys``, ``shares``, ``masked`` or ``opened``.
            round_number: the round.
            tensors: keys and shares as bytes, or the masked integers.
            numbers: in the clear.
            about: the session, and how the sum is protected.
            statistic: the declared row that is summed; None: an upload.
            noise: what was added to the upload before.

        Raises:
            PrivacyError: something undeclared, or of another shape or type; nothing has left.
        """
        declared = self._declaration.masked
        if declared is None:
            raise self._refusal(f"a secure sum's step '{step}'")
        row = None if statistic is None else self._declaration.statistics.get(statistic)
        if statistic is not None and row is None:
            raise self._refusal(f"statistic '{statistic}'")
        for name, tensor in tensors.items():
            if not declared.allows(step, name, Spec.of(tensor), None if row is None else row.length):
                raise self._refusal(f"'{name}' as {Spec.of(tensor)} in a secure sum's step '{step}'")
        for name in numbers:
            if step != "keys" or name not in declared.numbers:
                raise self._refusal(f"number '{name}' in a secure sum's step '{step}'")
        entry: dict[str, object] = {
            "round": round_number,
            "site": self._site,
            "step": step,
            "tensors": len(tensors),
            "bytes": nbytes(tensors) + NUMBER_BYTES * len(numbers),
            "metrics": dict(sorted(numbers.items())),
            "secure": dict(about),
            "purpose": f"secure sum, {_STEPS[step]}: {declared.purpose if row is None else row.purpose}",
        }
        if statistic is not None:
            entry["statistic"] = statistic
        self._write(entry if noise is None else entry | {"noise": dict(noise)}, {**tensors, **numbers})

    def release_validation(self, round_number: int, found: Mapping[str, Mapping[str, float]]) -> None:
        """Record validation means that leave, by the set on which they were computed.

        Raises:
            PrivacyError: a number that is not declared; nothing has left.
        """
        for metrics in found.values():
            for name in metrics:
                if name not in self._declaration.validation:
                    raise self._refusal(f"validation number '{name}'")
        numbers = {f"{where}/{k}": v for where, metrics in found.items() for k, v in sorted(metrics.items())}
        self._write(
            {
                "round": round_number,
                "site": self._site,
                "tensors": 0,
                "bytes": NUMBER_BYTES * len(numbers),
                "metrics": _finite(numbers),
                "purpose": "validation: choosing the best round",
            },
            numbers,
        )

    def release_statistic(
        self, name: str, values: NDArray[np.int64] | NDArray[np.float64], *, round_number: int
    ) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return ``values`` ``(length,)`` unchanged if such a row is declared; the ledger holds the numbers themselves.

        Args:
            name: of the declared statistic.
            values: sums or counts over images.
            round_number: the rounds that were over by then; 0: before training.

        Raises:
            PrivacyError: an undeclared name, or another shape; nothing has left.
        """
        declared = self._declaration.statistics.get(name)
        if declared is None:
            raise self._refusal(f"statistic '{name}'")
        if self._declaration.masked is not None:
            raise self._refusal(f"statistic '{name}' without masks")
        if values.shape != (declared.length,):
            raise self._refusal(f"statistic '{name}' of shape {values.shape} where ({declared.length},) is declared")
        self._write(
            {
                "round": round_number,
                "site": self._site,
                "statistic": name,
                "tensors": 1,
                "bytes": NUMBER_BYTES * len(values),
                "values": [v if math.isfinite(v) else None for v in values.tolist()],
                "purpose": declared.purpose,
            },
            {name: values},
        )
        return values

    def release_findings(self, name: str, tree: Mapping[str, Any], rows: Tensors, *, round_number: int) -> None:
        """Record a tree of numbers and its rows, which leave.

        Args:
            name: of the declared findings.
            tree: nested tables and lists of numbers and nulls.
            rows: named tensors.
            round_number: the rounds that were over by then; 0: before training.

        Raises:
            PrivacyError: something in them that is not declared; nothing has left.
        """
        declared = self._declaration.findings.get(name)
        if declared is None:
            raise self._refusal(f"'{name}'")
        if objection := declared.objection(tree, rows):
            raise self._refusal(f"'{name}': {objection}")
        numbers = _numbered(tree)
        self._write(
            {
                "round": round_number,
                "site": self._site,
                "findings": name,
                "tensors": len(rows),
                "bytes": nbytes(rows) + NUMBER_BYTES * len(numbers),
                "metrics": _finite(numbers),
                "purpose": declared.purpose,
            },
            {**rows, **numbers},
        )

    def _refusal(self, what: str) -> PrivacyError:
        return PrivacyError(
            f"Site '{self._site}': {what} is not declared and did not leave.",
            fix="declare it in the algorithm's site half if it is meant to travel; otherwise this is a defect.",
        )

    def _record(self, upload: Upload, noise: Mapping[str, object] | None) -> None:
        entry: dict[str, object] = {
            "round": upload.round,
            "site": upload.site,
            "tensors": len(upload.tensors),
            "bytes": upload_bytes(upload.tensors, upload.metrics),
            "weight": upload.weight,
            "metrics": _finite(upload.metrics),
            "purpose": self._declaration.purpose,
        }
        values: dict[str, Value] = {**upload.tensors, "weight": upload.weight, **upload.metrics}
        self._write(entry if noise is None else entry | {"noise": dict(noise)}, values)

    def _write(self, entry: Mapping[str, object], values: Mapping[str, Value]) -> None:
        if self._ledger is not None:
            self._ledger.write(entry, values)


def _numbered(tree: object) -> dict[str, float]:
    """Each number of a tree under a name of its own, such as ``confusion/0/3``; NaN where it is null."""
    found: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}" if name else str(key))
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                walk(inner, f"{name}/{place}")
        else:
            found[name] = math.nan if value is None else float(value)  # type: ignore[arg-type]  # checked before

    walk(tree, "")
    return found


_STEPS = {
    "keys": "public keys of this round and the ranges of the upload",
    "shares": "shares of this round's secrets, each sealed for one site",
    "masked": "the upload under masks",
    "opened": "shares that lift the masks left in the sum",
}


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in sorted(numbers.items())}


def upload_bytes(tensors: Tensors, metrics: Mapping[str, float]) -> int:
    """Bytes of an upload's content: tensors as they are, eight for each number and for the weight."""
    return nbytes(tensors) + NUMBER_BYTES * (len(metrics) + 1)
