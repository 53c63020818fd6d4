"""A site's end of secure sums: it keeps its upload to itself, and lets out keys, sealed shares and a masked vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from morphfed.core.errors import PrivacyError, SecureSumError
from morphfed.core.files import read_json, write_json
from morphfed.core.types import Spec, Tensors, Upload
from morphfed.federation.secure.plan import ADDED, CHANGES, MASKED, NUMBERS, REST, WEIGHT, Plan, Scales
from morphfed.federation.transports.base import Note
from morphfed.privacy.secure import fixed
from morphfed.privacy.secure.keys import Advert, Identity
from morphfed.privacy.secure.party import Party, refusal

if TYPE_CHECKING:
    from morphfed.privacy.egress import EgressGate
    from morphfed.privacy.secure.masks import Words


class OpenedRounds:
    """Which sites' sum was opened in each round, with this site's help.

    A round that is trained again gives the same upload. Were it opened for two sets of sites, their difference would
    be the upload of those that are in one set only. So a site helps to open a round for one set of sites.

    Args:
        path: a file that outlives this process; None: in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[str]] = read_json(path) if path is not None and path.is_file() else {}

    def note(self, round_number: int, survivors: list[str]) -> None:
        """Write a set down before it is opened.

        Raises:
            SecureSumError: the round was opened for other sites.
        """
        before = self._known.get(str(round_number))
        if before == survivors:
            return
        if before is not None:
            raise refusal(
                f"round {round_number} was opened for {', '.join(before)} before; opened for {', '.join(survivors)} "
                "too, the two sums would give away the upload of a single site"
            )
        self._known[str(round_number)] = survivors
        if self._path is not None:
            write_json(self._path, self._known)


class Member:
    """One site in the sums of one unit.

    Args:
        site: its name.
        plan: of the sums.
        gate: lets out what the plan declares.
        opened: what this site has helped to open.
        identity: proves that keys are this site's, and checks the others'; None: nobody proves anything.
    """

    def __init__(
        self,
        site: str,
        plan: Plan,
        gate: EgressGate,
        *,
        opened: OpenedRounds | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._site, self._plan, self._gate = site, plan, gate
        self._opened, self._identity = opened or OpenedRounds(), identity
        self._session: _Session | None = None

    def keys(self, session: str, upload: Upload, download: Tensors, *, noise: Mapping[str, object] | None) -> Note:
        """Begin a session with what the site has trained; whatever was before is forgotten, with its keys.

        Args:
            session: the coordinator's name for it.
            upload: what would be sent without secure aggregation; read before this returns, not kept.
            download: what it was trained from.
            noise: what was added to it, for the ledger.

        Raises:
            SecureSumError: a value is not finite, or larger than the study allows; nothing has left.
            PrivacyError: the upload holds what was not declared.
        """
        self._session = None
        self._check(upload)
        made = _Session(session, upload, _flat(upload.tensors, download, self._plan))
        claims = self._claims(made)
        made.party = Party(self._site, self._plan.terms(upload.round, session), claims, self._identity)
        advert = made.party.advert
        shown = {"sealing": advert.sealing, "masking": advert.masking, "commitment": advert.commitment}
        tensors = {name: _tensor(content) for name, content in (shown | dict(advert.proof)).items()}
        note = self._release("keys", made, tensors, claims, noise)
        self._session = made
        return note

    def answer(self, step: str, session: str, asked: Mapping[str, Any]) -> Note:
        """Take a further step of the session at hand.

        The same question again (its answer was lost) gets the same answer; another one for the same step gets none.

        Raises:
            SecureSumError: another session, a step out of order, or a question that no honest coordinator asks.
        """
        made = self._session
        if made is None or made.name != session:
            raise refusal("this site has no keys of this session; it was started again, or takes part in another")
        if step in made.answered:
            before, note = made.answered[step]
            if before != asked:
                raise refusal("this step was asked for before, with other values")
            return self._release(step, made, note.tensors, note.numbers)
        take = {"shares": self._shares, "masked": self._masked, "opened": self._open}.get(step)
        if take is None:
            raise refusal(f"there is no step '{step[:20]}'")
        note = self._release(step, made, take(made, asked), {})
        made.answered[step] = dict(asked), note
        return note

    def _shares(self, made: _Session, asked: Mapping[str, Any]) -> Tensors:
        adverts = {}
        for site, plain in _table(asked, "adverts").items():
            try:
                adverts[site] = Advert.read(plain)
                self._plan.check(site, adverts[site])
            except ValueError as cause:
                raise refusal(f"of site '{site}': {cause}") from cause
        sealed = made.party.share(adverts)
        made.scales = Scales.of(self._plan, adverts)
        return {f"to/{site}": _tensor(content) for site, content in sealed.items()}

    def _masked(self, made: _Session, asked: Mapping[str, Any]) -> Tensors:
        try:
            sealed = {site: bytes.fromhex(content) for site, content in _table(asked, "sealed").items()}
        except (TypeError, ValueError) as cause:
            raise refusal("the sealed shares are none") from cause
        if made.scales is None or not made.values:
            raise refusal("this step was taken already, or the one before it was not")
        vectors = self._integers(made, made.scales)
        made.party.mask(vectors, sealed)
        made.values = []  # from here on there is the masked vector only
        signed = (vector.view(f"i{vector.itemsize}") for vector in vectors)
        return {name: torch.from_numpy(vector) for name, vector in zip((MASKED, NUMBERS), signed, strict=True)}

    def _open(self, made: _Session, asked: Mapping[str, Any]) -> Tensors:
        survivors = asked.get("survivors")
        if not isinstance(survivors, list) or not all(isinstance(site, str) for site in survivors):
            raise refusal("the survivors are no list of sites")
        shares = made.party.open(survivors)
        self._opened.note(made.upload.round, sorted(survivors))
        made.answered.pop("masked", None)
        return {f"of/{site}": _tensor(share) for site, share in shares.items()}

    def _check(self, upload: Upload) -> None:
        specs = {name: Spec.of(tensor) for name, tensor in upload.tensors.items()}
        if specs != dict(self._plan.specs) or set(upload.metrics) != set(ADDED) - {WEIGHT}:
            raise PrivacyError(
                f"Site '{self._site}': the upload is not what was declared for the sum, and did not leave.",
                fix="declare in the algorithm's site half what is meant to travel; otherwise this is a defect.",
            )

    def _claims(self, made: _Session) -> dict[str, int]:
        """Ranges of the upload, in the clear.

        Raises:
            SecureSumError: a number that is not finite, or too large.
        """
        found = dict.fromkeys((CHANGES, REST), 0.0)
        for name, values in zip(self._plan.specs, made.values, strict=True):
            kind = self._plan.kind(name)
            largest = float(np.abs(values).max(initial=0.0))  # NaN where any is
            if not largest <= self._plan.config.largest:
                raise SecureSumError(
                    f"Site '{self._site}', round {made.upload.round}: '{name}' has changed by {largest:.3g}, more than "
                    f"federation.secure.largest = {self._plan.config.largest:g}; nothing was sent.",
                    fix="lower train.lr, or set train.clip = 1.0; or allow a larger range, which rounds more.",
                )
            found[kind] = max(found[kind], largest)
        weight = 1.0 if self._plan.weighting == "uniform" else made.upload.weight
        return {kind: fixed.exponent(value) for kind, value in found.items()} | {WEIGHT: max(0, fixed.exponent(weight))}

    def _integers(self, made: _Session, scales: Scales) -> list[Words]:
        """The site's term of the sum, in the integers that the round's sites have in common."""
        bits = self._plan.config.bits
        weight = 1.0 if self._plan.weighting == "uniform" else made.upload.weight
        vector: Words = np.empty(self._plan.length, dtype=f"u{bits // 8}")
        start = 0
        for name, values in zip(self._plan.specs, made.values, strict=True):
            kind = self._plan.kind(name)
            into = vector[start : start + len(values)]
            fixed.write(values, into, weight / scales.total / scales.steps[kind])
            start += len(values)
        metrics = made.upload.metrics
        told = {**metrics, "weight": weight, "loss": metrics["loss"] * metrics["images"]}
        try:
            return [vector, fixed.write_numbers(np.array([told[name] for name in ADDED]))]
        except ValueError as cause:
            wrong = ADDED[int(cause.args[0])]
            raise refusal(f"its number '{wrong}' is {told[wrong]:g}, which does not fit") from cause

    def _release(
        self,
        step: str,
        made: _Session,
        tensors: Tensors,
        numbers: Mapping[str, int],
        noise: Mapping[str, object] | None = None,
    ) -> Note:
        about = {"session": made.name, **self._plan.describe()}
        self._gate.release_step(step, made.upload.round, tensors, numbers, about=about, noise=noise)
        return Note(self._site, dict(numbers), tensors)


class _Session:
    """One round's sum, at one site."""

    party: Party

    def __init__(self, name: str, upload: Upload, values: list[np.ndarray[Any, Any]]) -> None:
        self.name, self.values = name, values
        self.upload = Upload(upload.site, upload.round, {}, upload.weight, upload.metrics)
        self.scales: Scales | None = None
        self.answered: dict[str, tuple[dict[str, Any], Note]] = {}


@torch.no_grad()
def _flat(tensors: Tensors, download: Tensors, plan: Plan) -> list[np.ndarray[Any, Any]]:
    """Copies of what is to be summed, tensor by tensor: changes against the download where there is one."""
    found = []
    for name in plan.specs:
        change = tensors[name] - download[name] if name in plan.relative else tensors[name].clone()
        wide = change if change.dtype in (torch.float32, torch.float64) else change.float()
        found.append(wide.detach().cpu().reshape(-1).numpy())
    return found


def _table(asked: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = asked.get(key)
    if not isinstance(found, dict):
        raise refusal(f"its '{key}' is no table")
    return found


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
