"""The coordinator's end of secure sums: four questions to the sites, and the weighted mean of those that stayed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from morphfed.core.types import Failure, Spec, Tensors, nbytes
from morphfed.federation.secure.plan import ADDED, CHANGES, MASKED, NUMBERS, REST, Plan, Scales
from morphfed.federation.transports.base import Note
from morphfed.privacy.egress import NUMBER_BYTES
from morphfed.privacy.secure import fixed
from morphfed.privacy.secure.assembly import Assembly, readable
from morphfed.privacy.secure.keys import Advert

if TYPE_CHECKING:
    from morphfed.federation.transports.base import Transport

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


@dataclass
class _Traffic:
    up: int = 0
    down: int = 0
    failed: set[str] = field(default_factory=set)


class SecureSums:
    """Runs one session a round; a round that is begun again gets a session of its own, with new keys at every site.

    Args:
        plan: as the sites have it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._words = [np.zeros(plan.length, dtype=f"u{plan.config.bits // 8}"), np.zeros(len(ADDED), dtype=np.uint64)]
        self._mean: Tensors = {}

    def run(
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
        session = secrets.token_hex(16)
        traffic = _Traffic()

        def step(name: str, asked: Mapping[str, Mapping[str, Any]], read: Callable[[Note], None]) -> None:
            """Ask, and read what comes; whoever fails, or answers nonsense, is out."""
            heads = {site: {"session": session, **head} for site, head in asked.items()}
            answers = transport.exchange(name, round_number, rounds, heads, sent if name == "keys" else {})
            for site, answer in zip(heads, answers, strict=True):
                try:
                    if isinstance(answer, Failure):
                        refused(answer, name == "opened")
                        continue
                    read(answer)
                except ValueError as cause:
                    refused(Failure(site, round_number, f"Site '{site}': {cause}."), name == "opened")
                    continue
                traffic.up += nbytes(answer.tensors) + NUMBER_BYTES * len(answer.numbers)

        adverts: dict[str, Advert] = {}

        def read_keys(note: Note) -> None:
            adverts[note.site] = self._advert(note)

        step("keys", {site: {} for site in downloads}, read_keys)
        enough(len(adverts), "are ready for the sum")
        for words in self._words:
            words.fill(0)
        assembly = Assembly(self.plan.terms(round_number, session), adverts, self._words)
        told = {name: advert.plain() for name, advert in adverts.items()}
        traffic.down += len(adverts) * sum(_size(advert) for advert in adverts.values())

        step("shares", {site: {"adverts": told} for site in adverts}, lambda note: _take_shares(assembly, note))
        sharing = assembly.sharing
        enough(len(sharing), "have shared out their secrets")
        forwarded = {site: assembly.sealed_for(site) for site in sharing}
        traffic.down += sum(len(one) for of_site in forwarded.values() for one in of_site.values())

        heads = {site: {"sealed": {s: one.hex() for s, one in found.items()}} for site, found in forwarded.items()}
        step("masked", heads, lambda note: assembly.add(note.site, self._vectors(note)))
        survivors = assembly.survivors
        enough(len(survivors), "have sent their masked upload")

        shares: dict[str, dict[str, bytes]] = {}

        def read_shares(note: Note) -> None:
            found = {name.removeprefix("of/"): _bytes(tensor) for name, tensor in note.tensors.items()}
            if not readable(found, sharing):
                raise ValueError("its answer is not one share of each secret")
            shares[note.site] = found

        step("opened", {site: {"survivors": survivors} for site in survivors}, read_shares)
        assembly.open(shares)
        return self._total(survivors, Scales.of(self.plan, adverts), downloads, traffic)

    def _advert(self, note: Note) -> Advert:
        known = {name: _bytes(tensor) for name, tensor in note.tensors.items()}
        try:
            sealing, masking, commitment = (known.pop(name) for name in ("sealing", "masking", "commitment"))
        except KeyError as cause:
            raise ValueError("its keys are missing") from cause
        advert = Advert(sealing, masking, commitment, dict(note.numbers), known).checked()
        self.plan.check(note.site, advert)
        return advert

    def _vectors(self, note: Note) -> list[np.ndarray[Any, Any]]:
        declared = self.plan.declared.tensors
        if {name: Spec.of(tensor) for name, tensor in note.tensors.items()} != dict(declared):
            raise ValueError("its masked upload is not of the shape that the study declares")
        found = [note.tensors[name].numpy() for name in (MASKED, NUMBERS)]
        return [vector.view(f"u{vector.itemsize}") for vector in found]

    @torch.no_grad()
    def _total(
        self, survivors: list[str], scales: Scales, downloads: Mapping[str, Tensors], traffic: _Traffic
    ) -> Total:
        added = dict(zip(ADDED, fixed.read_numbers(self._words[1]).tolist(), strict=True))
        weight = added["weight"]
        base = self._base(downloads)
        start = 0
        for name, spec in self.plan.specs.items():
            count = int(np.prod(spec.shape))
            factor = scales.steps[self.plan.kind(name)] * scales.total / weight
            change = torch.from_numpy(fixed.read(self._words[0][start : start + count], factor)).reshape(spec.shape)
            if name in base:
                change += base[name].cpu()
            if name not in self._mean:
                like = downloads[survivors[0]].get(name)
                where = like.device if like is not None else None
                self._mean[name] = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=where)
            self._mean[name].copy_(change)
            start += count
        numbers = {"loss": added["loss"] / added["images"], "steps": added["steps"], "images": added["images"]}
        error = {kind: scales.error(kind, len(survivors), weight) for kind in (CHANGES, REST)}
        return Total(tuple(survivors), weight, self._mean, numbers, error, traffic.up, traffic.down)

    def _base(self, downloads: Mapping[str, Tensors]) -> Tensors:
        """What the changes are added to; it must be the same for every site."""
        first, *others = downloads.values()
        for name in self.plan.relative:
            if any(other[name] is not first[name] for other in others):
                raise RuntimeError(f"'{name}' differs between the sites' downloads: their changes have no sum")
        return {name: first[name] for name in self.plan.relative}


def _take_shares(assembly: Assembly, note: Note) -> None:
    sealed = {name.removeprefix("to/"): _bytes(tensor) for name, tensor in note.tensors.items()}
    assembly.take_shares(note.site, sealed)


def _bytes(tensor: torch.Tensor) -> bytes:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError("what should be bytes is not")
    return tensor.numpy().tobytes()


def _size(advert: Advert) -> int:
    return sum(map(len, (*advert.keys, *advert.proof.values()))) + NUMBER_BYTES * len(advert.claims)
