"""The coordinator's end of secure sums: four questions to the sites, and the weighted mean of those that stayed."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from morphfed.core.types import Failure, Spec, Tensors, nbytes
from morphfed.federation.secure.plan import ADDED, CHANGES, MASKED, NUMBERS, REST, Plan, Scales, of_round, of_row
from morphfed.federation.transports.base import Note
from morphfed.privacy.egress import NUMBER_BYTES
from morphfed.privacy.secure import fixed
from morphfed.privacy.secure.assembly import Assembly, readable
from morphfed.privacy.secure.keys import Advert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.federation.transports.base import Transport
    from morphfed.privacy.secure.masks import Words

Refused = Callable[[Failure, bool], None]
"""Told of a site that drops out, and whether its upload is in the sum nevertheless."""
Enough = Callable[[int, str], None]
"""Raises where too few sites are left: how many, and what they have done."""


@dataclass(frozen=True)
class Total:
    """What the coordinator learns of a round.

    Attributes:
        sites: whose uploads are in it.
        weight: of them together.
        mean: the weighted mean of their uploads; the tensors are lent until the next round.
        numbers: ``loss``, a mean over images, and ``steps`` and ``images``, sums.
        error: the most by which a number of the mean was rounded, by kind of tensor.
        up, down: bytes that moved beside the downloads.
    """

    sites: tuple[str, ...]
    weight: float
    mean: Tensors
    numbers: dict[str, float]
    error: dict[str, float]
    up: int
    down: int


class SecureSums:
    """Runs one session a sum; a round that is begun again gets a session of its own, with new keys at every site.

    Args:
        plan: as the sites have it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._words: dict[str, Words] = {
            MASKED: np.zeros(plan.length, dtype=f"u{plan.config.bits // 8}"),
            NUMBERS: np.zeros(len(ADDED), dtype=np.uint64),
        }
        self._mean: Tensors = {}

    def of_round(
        self,
        transport: Transport,
        round_number: int,
        rounds: int,
        downloads: Mapping[str, Tensors],
        sent: Mapping[str, Tensors],
        *,
        refused: Refused,
        enough: Enough,
    ) -> Total:
        """Have the sites train, and learn the mean of their uploads.

        Args:
            transport: reaches the sites.
            round_number, rounds: of the run.
            downloads: by site, in full precision; the same tensors for all.
            sent: the same as they travel.
            refused: told of every site that drops out, also of one that does not help to open the sum.
            enough: called when a step is over; raises where too few are left to go on.

        Raises:
            SecureSumError: the sum cannot be opened; nothing but masked vectors was seen.
            FederationError: from ``enough``.
        """
        base = self._base(downloads)
        what = of_round(round_number, next(iter(sent.values())))
        session = _Session(self.plan, what, self._words, transport, round_number, rounds, refused, enough)
        session.check = self.plan.check
        survivors = session.run({site: {} for site in downloads}, sent)
        scales = Scales.of(self.plan, session.adverts)
        added = dict(zip(ADDED, fixed.read_numbers(self._words[NUMBERS]).tolist(), strict=True))
        mean = self._read(scales, added["weight"], base, downloads[survivors[0]])
        numbers = {"loss": added["loss"] / added["images"], "steps": added["steps"], "images": added["images"]}
        error = {kind: scales.error(kind, len(survivors), added["weight"]) for kind in (CHANGES, REST)}
        return Total(tuple(survivors), added["weight"], mean, numbers, error, session.up, session.down)

    def of_row(
        self,
        transport: Transport,
        row: Mapping[str, Any],
        length: int,
        round_number: int,
        downloads: Mapping[str, Tensors],
        *,
        refused: Refused,
        enough: Enough,
    ) -> NDArray[np.float64]:
        """The sum ``(length,)`` of a declared row of the sites.

        Args:
            transport, refused, enough: as in :meth:`of_round`.
            row: what is asked, plain JSON: ``statistic``, ``at``, ``temperature``, ``views``.
            length: of the row.
            round_number: rounds that are over.
            downloads: by site, the model that is looked at; empty tables where none is.

        Raises:
            SecureSumError, FederationError: as :meth:`of_round`.
        """
        words: dict[str, Words] = {NUMBERS: np.zeros(length, dtype=np.uint64)}
        what = of_row(row, round_number)
        session = _Session(self.plan, what, words, transport, round_number, 0, refused, enough)
        session.run({site: {"row": dict(row)} for site in downloads}, downloads)
        return fixed.read_numbers(words[NUMBERS])

    def _base(self, downloads: Mapping[str, Tensors]) -> Tensors:
        """What the changes are added to; it must be the same for every site."""
        first, *others = downloads.values()
        for name in self.plan.relative:
            if any(other[name] is not first[name] for other in others):
                raise RuntimeError(f"'{name}' differs between the sites' downloads: their changes have no sum")
        return {name: first[name] for name in self.plan.relative}

    @torch.no_grad()
    def _read(self, scales: Scales, weight: float, base: Tensors, like: Tensors) -> Tensors:
        """The weighted mean, from the sum of integers; in the memory of the round before."""
        start = 0
        for name, spec in self.plan.specs.items():
            count = math.prod(spec.shape)
            factor = scales.steps[self.plan.kind(name)] * scales.total / weight
            words = self._words[MASKED][start : start + count]
            change = torch.from_numpy(fixed.read(words, factor)).reshape(spec.shape)
            if name in base:
                change += base[name].cpu()
            if name not in self._mean:
                where = like[name].device if name in like else None
                self._mean[name] = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=where)
            self._mean[name].copy_(change)
            start += count
        return self._mean


class _Session:
    """Four questions to the sites; whoever fails, or answers nonsense, is out from then on.

    Attributes:
        adverts: of the sites that take part.
        check: what a site may claim; raises ValueError.
        up, down: bytes that moved, beside downloads.
    """

    def __init__(
        self,
        plan: Plan,
        what: str,
        words: Mapping[str, Words],
        transport: Transport,
        round_number: int,
        rounds: int,
        refused: Refused,
        enough: Enough,
    ) -> None:
        self._name = secrets.token_hex(16)
        self._terms, self._words = plan.terms(what, self._name), words
        self._transport, self._round, self._rounds = transport, round_number, rounds
        self._refused, self._enough = refused, enough
        self.adverts: dict[str, Advert] = {}
        self.check: Callable[[Advert], None] = lambda advert: None
        self.up = self.down = 0

    def run(self, asked: Mapping[str, Mapping[str, Any]], downloads: Mapping[str, Tensors]) -> list[str]:
        """All steps; ``words`` hold the sum of the sites that are given back.

        Args:
            asked: by site, the first question.
            downloads: that go with it.
        """
        self._step("keys", asked, self._take_keys, downloads)
        self._enough(len(self.adverts), "are ready for the sum")
        for words in self._words.values():
            words.fill(0)
        assembly = Assembly(self._terms, self.adverts, list(self._words.values()))
        told = {name: advert.plain() for name, advert in self.adverts.items()}
        self.down += len(told) * sum(_size(advert) for advert in self.adverts.values())

        def take_shares(note: Note) -> None:
            sealed = {name.removeprefix("to/"): _bytes(tensor) for name, tensor in note.tensors.items()}
            assembly.take_shares(note.site, sealed)

        self._step("shares", {site: {"adverts": told} for site in told}, take_shares)
        self._enough(len(assembly.sharing), "have shared out their secrets")

        forwarded = {site: assembly.sealed_for(site) for site in assembly.sharing}
        self.down += sum(len(one) for of_site in forwarded.values() for one in of_site.values())
        sealed = {site: {s: one.hex() for s, one in found.items()} for site, found in forwarded.items()}
        self._step(
            "masked",
            {site: {"sealed": found} for site, found in sealed.items()},
            lambda note: assembly.add(note.site, self._vectors(note)),
        )
        survivors = assembly.survivors
        self._enough(len(survivors), "have sent what is to be summed")

        shares: dict[str, dict[str, bytes]] = {}

        def take_opened(note: Note) -> None:
            found = {name.removeprefix("of/"): _bytes(tensor) for name, tensor in note.tensors.items()}
            if not readable(found, assembly.sharing):
                raise ValueError("its answer is not one share of each secret")
            shares[note.site] = found

        self._step("opened", {site: {"survivors": survivors} for site in survivors}, take_opened)
        assembly.open(shares)
        return survivors

    def _step(
        self,
        name: str,
        asked: Mapping[str, Mapping[str, Any]],
        take: Callable[[Note], None],
        downloads: Mapping[str, Tensors] | None = None,
    ) -> None:
        heads = {site: {"session": self._name, **head} for site, head in asked.items()}
        answers = self._transport.exchange(name, self._round, self._rounds, heads, downloads or {})
        for site, answer in zip(heads, answers, strict=True):
            counted = name == "opened"
            if isinstance(answer, Failure):
                self._refused(answer, counted)
                continue
            try:
                take(answer)
            except ValueError as cause:
                self._refused(Failure(site, self._round, f"Site '{site}': {cause}."), counted)
                continue
            self.up += nbytes(answer.tensors) + NUMBER_BYTES * len(answer.numbers)

    def _take_keys(self, note: Note) -> None:
        known = {name: _bytes(tensor) for name, tensor in note.tensors.items()}
        try:
            sealing, masking, commitment = (known.pop(name) for name in ("sealing", "masking", "commitment"))
        except KeyError as cause:
            raise ValueError("its keys are missing") from cause
        advert = Advert(sealing, masking, commitment, dict(note.numbers), known).checked()
        self.check(advert)
        self.adverts[note.site] = advert

    def _vectors(self, note: Note) -> list[Words]:
        expected = {name: Spec(words.shape, f"int{8 * words.itemsize}") for name, words in self._words.items()}
        if {name: Spec.of(tensor) for name, tensor in note.tensors.items()} != expected:
            raise ValueError("its masked upload is not of the shape that the study declares")
        found = [note.tensors[name].numpy() for name in expected]
        return [vector.view(f"u{vector.itemsize}") for vector in found]


def _bytes(tensor: torch.Tensor) -> bytes:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError("what should be bytes is not")
    return tensor.numpy().tobytes()


def _size(advert: Advert) -> int:
    return sum(map(len, (*advert.keys, *advert.proof.values()))) + NUMBER_BYTES * len(advert.claims)
