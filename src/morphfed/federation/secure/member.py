"""A site's end of secure sums: it keeps its upload to itself, and lets out keys, sealed shares and a masked vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    from numpy.typing import NDArray

    from morphfed.privacy.egress import EgressGate
    from morphfed.privacy.secure.masks import Words


class Opened:
    """For which sites each sum was opened, with this site's help.

    A round that is trained again gives the same upload. Were it opened for two sets of sites, their difference would
    be the upload of those that are in one set only. So a site helps to open a sum for one set of sites.

    Args:
        path: a file that outlives this process; None: in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[str]] = read_json(path) if path is not None and path.is_file() else {}

    def note(self, what: str, survivors: list[str]) -> None:
        """Write a set down before it is opened.

        Raises:
            SecureSumError: the same sum was opened for other sites.
        """
        before = self._known.get(what)
        if before == survivors:
            return
        if before is not None:
            raise refusal(
                f"{what} was opened for {', '.join(before)} before; opened for {', '.join(survivors)} too, the two "
                "sums would give away what single sites sent"
            )
        self._known[what] = survivors
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
        opened: Opened | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._site, self._plan, self._gate = site, plan, gate
        self._opened, self._identity = opened or Opened(), identity
        self._session: _Session | None = None

    def keys(
        self, session: str, what: str, upload: Upload, download: Tensors, *, noise: Mapping[str, object] | None
    ) -> Note:
        """Begin a session with what the site has trained; whatever was before is forgotten, with its keys.

        Args:
            session: the coordinator's name for it.
            what: is summed, in the words of :func:`morphfed.federation.secure.plan.of_round`.
            upload: what would be sent without secure aggregation; read before this returns, not kept.
            download: what it was trained from.
            noise: what was added to it, for the ledger.

        Raises:
            SecureSumError: a value is not finite, or larger than the study allows; nothing has left.
            PrivacyError: the upload holds what was not declared.
        """
        self._session = None
        self._check(upload)
        values = _flat(upload.tensors, download, self._plan)
        metrics = upload.metrics
        weight = 1.0 if self._plan.weighting == "uniform" else upload.weight
        told = {**metrics, "weight": weight, "loss": metrics["loss"] * metrics["images"]}
        numbers = np.array([told[name] for name in ADDED])
        made = _Session(session, f"round {upload.round}", upload.round, values, numbers, weight)
        return self._begin(made, what, self._claims(made), noise)

    def row(self, session: str, what: str, statistic: str, round_number: int, values: NDArray[Any]) -> Note:
        """Begin a session with a declared row of sums or counts over this site's images.

        Args:
            session, what: as in :meth:`keys`, ``what`` in the words of :func:`morphfed.federation.secure.plan.of_row`.
            statistic: its name.
            round_number: the rounds that were over.
            values: ``(length,)``.
        """
        self._session = None
        numbers = np.asarray(values, dtype=np.float64)
        made = _Session(session, what, round_number, [], numbers, 0.0, statistic)
        return self._begin(made, what, {}, None)

    def _begin(self, made: _Session, what: str, claims: Mapping[str, int], noise: Mapping[str, object] | None) -> Note:
        made.party = Party(self._site, self._plan.terms(what, made.name), claims, self._identity)
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
                if made.statistic is None:
                    self._plan.check(adverts[site])
            except ValueError as cause:
                raise refusal(f"of site '{site}': {cause}") from cause
        sealed = made.party.share(adverts)
        made.scales = Scales.of(self._plan, adverts) if made.statistic is None else None
        return {f"to/{site}": _tensor(content) for site, content in sealed.items()}

    def _masked(self, made: _Session, asked: Mapping[str, Any]) -> Tensors:
        try:
            sealed = {site: bytes.fromhex(content) for site, content in _table(asked, "sealed").items()}
        except (TypeError, ValueError) as cause:
            raise refusal("the sealed shares are none") from cause
        vectors = self._integers(made)
        made.party.mask([vectors[name] for name in vectors], sealed)
        made.values = []  # from here on there is the masked vector only
        return {name: torch.from_numpy(words.view(f"i{words.itemsize}")) for name, words in vectors.items()}

    def _open(self, made: _Session, asked: Mapping[str, Any]) -> Tensors:
        survivors = asked.get("survivors")
        if not isinstance(survivors, list) or not all(isinstance(site, str) for site in survivors):
            raise refusal("the survivors are no list of sites")
        shares = made.party.open(survivors)
        self._opened.note(made.what, sorted(survivors))
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
                    f"Round {made.round}: '{name}' has changed by {largest:.3g}, more than "
                    f"federation.secure.largest = {self._plan.config.largest:g}; nothing was sent.",
                    fix="lower train.lr, or set train.clip = 1.0; or allow a larger range, which rounds more.",
                )
            found[kind] = max(found[kind], largest)
        ranges = {kind: fixed.exponent(value) for kind, value in found.items()}
        return ranges | {WEIGHT: max(0, fixed.exponent(made.weight))}

    def _integers(self, made: _Session) -> dict[str, Words]:
        """The site's term of the sum, in the integers that the session's sites have in common."""
        vectors: dict[str, Words] = {}
        if made.statistic is None:
            if made.scales is None or not made.values:
                raise refusal("this step was taken already, or the one before it was not")
            scales = made.scales
            vectors[MASKED] = vector = np.empty(self._plan.length, dtype=f"u{self._plan.config.bits // 8}")
            start = 0
            for name, values in zip(self._plan.specs, made.values, strict=True):
                factor = made.weight / scales.total / scales.steps[self._plan.kind(name)]
                fixed.write(values, vector[start : start + len(values)], factor)
                start += len(values)
        try:
            vectors[NUMBERS] = fixed.write_numbers(made.numbers)
        except ValueError as cause:
            wrong = int(cause.args[0])
            name = ADDED[wrong] if made.statistic is None else f"{made.statistic}, {wrong}"
            raise refusal(f"its number '{name}' is {made.numbers[wrong]:g}, which does not fit") from cause
        return vectors

    def _release(
        self,
        step: str,
        made: _Session,
        tensors: Tensors,
        numbers: Mapping[str, int],
        noise: Mapping[str, object] | None = None,
    ) -> Note:
        about = {"session": made.name, **self._plan.describe()}
        self._gate.release_step(step, made.round, tensors, numbers, about=about, statistic=made.statistic, noise=noise)
        return Note(self._site, dict(numbers), tensors)


@dataclass
class _Session:
    """One sum, at one site.

    Attributes:
        name: the coordinator's name for the session.
        what: is opened for one set of sites only.
        round: for the ledger.
        values: an upload's tensors as flat arrays, until they are masked; of a statistic none.
        numbers: single numbers, or the statistic.
        weight: of this site in the mean.
        statistic: its name; None: an upload.
        scales: of an upload, once all sites' ranges are known.
        answered: step → what was asked, and the answer.
    """

    name: str
    what: str
    round: int
    values: list[NDArray[Any]]
    numbers: NDArray[np.float64]
    weight: float
    statistic: str | None = None
    scales: Scales | None = None
    answered: dict[str, tuple[dict[str, Any], Note]] = field(default_factory=dict)
    party: Party = field(init=False)


@torch.no_grad()
def _flat(tensors: Tensors, download: Tensors, plan: Plan) -> list[NDArray[Any]]:
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
