"""A site's desk: answers the coordinator's questions of one unit, with the site of this process.

Its private state is kept on the site's own disk, a file a round, so that a question can be answered again: a
coordinator that was killed before its checkpoint repeats a round, and a site that was killed takes up its last state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from morphfed.core.errors import StorageError
from morphfed.core.types import Tensors
from morphfed.federation.site import Site
from morphfed.federation.transports.parcel import Parcel, digest, pack
from morphfed.federation.transports.remote import ANSWER, ECHOED, NEED
from morphfed.models import weights

KEEP = 3
"""Rounds whose private state is kept, beside the best one's."""


class RoundStates:
    """Private state of a site by round, in a folder of one unit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:05d}.safetensors"

    def rounds(self) -> list[int]:
        """Those that are there."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors"))

    def before(self, round_number: int) -> tuple[int, Tensors]:
        """The newest state of an earlier round; 0 and nothing before the first."""
        return self.of(round_number - 1)

    def of(self, round_number: int) -> tuple[int, Tensors]:
        """The newest state of this round or an earlier one (a site may have missed it); damaged files are set aside."""
        for known in reversed([r for r in self.rounds() if r <= round_number]):
            try:
                return known, weights.load(self._file(known))
            except StorageError:
                self._file(known).replace(self._file(known).with_suffix(".damaged"))
        return 0, {}

    def save(self, round_number: int, state: Tensors, best: int) -> None:
        """Keep a round's state; drop those that are not needed any more, and those of rounds that are done again.

        Raises:
            StorageError: the disk is full or read-only; earlier rounds stay.
        """
        weights.save(self._file(round_number), state, {"round": str(round_number)})  # no file is quite empty
        known = self.rounds()
        kept = {best, *[r for r in known if r <= round_number][-KEEP:]}
        for old in known:
            if old not in kept:
                self._file(old).unlink(missing_ok=True)


Head = Mapping[str, Any]
Reply = tuple[dict[str, Any], Tensors]
Handle = Callable[[Head], Reply]
"""A question's head → what its answer's head says beside what it repeats, and the answer's tensors."""


class Desk:
    """Answers the questions of one unit.

    Args:
        site: trains and judges, behind its gate; None: this site does not take part in the unit's rounds, and there is
            no question by which it could.
        states: its private state.
        network: digest of the initial network here.
        ledger: gives the last hash of the site's ledger.
        finished: called when the unit is over and the network holds the model as this site uses it.
        newcomer: fills the network with a finished model, where there is no ``site`` to do it.
        judge: answers "judge", with the network filled as this site uses the finished model.
        more: further questions, by kind.
    """

    def __init__(
        self,
        site: Site | None,
        states: RoundStates,
        *,
        network: str,
        ledger: Callable[[], str],
        finished: Callable[[], None] = lambda: None,
        newcomer: Callable[[Tensors], None] = lambda download: None,
        judge: Handle | None = None,
        more: Mapping[str, Handle] | None = None,
    ) -> None:
        self._states, self._network, self._ledger = states, network, ledger
        self._finished, self._newcomer = finished, newcomer
        self._kinds: dict[str, Handle] = {
            "hello": self._hello,
            "finish": self._finish,
            "leave": lambda head: ({}, {}),
            **(more or {}),
        }
        if judge is not None:
            self._kinds["judge"] = lambda head: self._judge(head, judge)
        if site is not None:
            self._site = site
            rounds: dict[str, Handle] = {
                "counts": self._counts,
                "train": self._train,
                "secure": self._secure,
                "evaluate": self._evaluate,
                "sums": self._sums,
            }
            self._kinds |= rounds
        self._trains = site is not None
        self._at: int | None = None
        self._download: tuple[str, Tensors] = ("", {})

    def answer(self, question: Parcel) -> Parcel:
        """Answer one question.

        Raises:
            QuestionError: it is not one, or of another network.
            TrainingError: the site's training failed.
            PrivacyError: something undeclared would leave.
            StorageError: the site's disk is full.
        """
        head = question.head
        handle = self._kinds.get(question.kind)
        if handle is None:
            where = "" if self._trains else ": this site takes no part in these rounds"
            raise QuestionError(f"there is no question '{question.kind[:40]}'{where}")
        if not self._has_download(question):
            return Parcel(NEED)
        if self._trains and (counts := head.get("class_counts")) is not None:
            self._site.use_class_counts(np.array(counts, dtype=np.int64))
        found, tensors = handle(head)
        told = {key: head.get(key) for key in ECHOED}
        return Parcel(ANSWER, {**told, **found, "ledger": self._ledger()}, tensors)

    def _has_download(self, question: Parcel) -> bool:
        named = str(question.head.get("download", ""))
        if not named or self._download[0] == named:
            return True
        if not question.head.get("whole"):
            return False
        if digest(pack(Parcel("download", {}, question.tensors))) != named:
            raise QuestionError("the download is not the one that its question names")
        self._download = (named, question.tensors)
        return True

    def _hello(self, head: Head) -> Reply:
        if head.get("network") != self._network:
            raise QuestionError(
                "the initial network here is not the coordinator's: the weights file, or the version of torch or timm, "
                "differs"
            )
        return {}, {}

    def _counts(self, head: Head) -> Reply:
        return {"counts": self._site.class_counts().tolist()}, {}

    def _train(self, head: Head) -> Reply:
        number, rounds = _whole(head, "round"), _whole(head, "rounds")
        with self._training(head):
            upload = self._site.train(number, rounds, self._download[1])
        return {"weight": upload.weight, "metrics": upload.metrics}, upload.tensors

    @contextmanager
    def _training(self, head: Head) -> Iterator[None]:
        """Within, the site trains a round from its state before it; after it, its new state is on the disk."""
        number, best = _whole(head, "round"), _whole(head, "best")
        known, state = self._states.before(number)
        if self._at is None or self._at != known:  # a first question, or a round that is done again
            self._site.load_state(state)
        self._at = None
        yield
        self._states.save(number, self._site.state(), best)
        self._at = number

    def _secure(self, head: Head) -> Reply:
        step, number, rounds = str(head.get("step")), _whole(head, "round"), _whole(head, "rounds")
        asked = {key: head[key] for key in ("session", "row", "adverts", "sealed", "survivors") if key in head}
        trains = step == "keys" and "row" not in asked
        if "row" in asked:
            _check_row(asked["row"])
            if head.get("state") is not None:
                self._bring(_whole(head, "state"))
        with self._training(head) if trains else nullcontext():
            note = self._site.exchange(step, number, rounds, asked, self._download[1])
        return {"numbers": dict(note.numbers)}, note.tensors

    def _evaluate(self, head: Head) -> Reply:
        number = _whole(head, "round")
        self._bring(number)
        return {"validation": self._site.evaluate(number, self._download[1])}, {}

    def _sums(self, head: Head) -> Reply:
        if head.get("state") is not None:
            self._bring(_whole(head, "state"))
        views = _whole(head, "views")
        sums = self._site.validation_sums(
            str(head.get("statistic")),
            _whole(head, "round"),
            self._download[1],
            np.array(head.get("at"), dtype=np.float64),
            temperature=float(head.get("temperature", 1.0)),
            views=8 if views == 8 else 1,
        )
        return {"sums": sums.tolist()}, {}

    def _judge(self, head: Head, judge: Handle) -> Reply:
        self._hello(head)
        self._fill(_whole(head, "use"))
        return judge(head)

    def _finish(self, head: Head) -> Reply:
        self._fill(_whole(head, "use"))
        self._finished()
        return {}, {}

    def _fill(self, use: int) -> None:
        """Put the finished model into the network, as this site uses it."""
        if self._trains:
            self._bring(use)
            self._site.load_model(self._download[1])
        else:
            self._newcomer(self._download[1])

    def _bring(self, number: int) -> None:
        """The site as it was after a round."""
        known, state = self._states.of(number)
        if self._at != known:
            self._site.load_state(state)
            self._at = known


def _check_row(row: Any) -> None:
    if not isinstance(row, dict) or not {"statistic", "at", "temperature", "views"} <= set(row):
        raise QuestionError("its 'row' names no statistic")


class QuestionError(ValueError):
    """A question that cannot be answered, whoever asked it; says why."""


def _whole(head: Mapping[str, Any], key: str) -> int:
    value = head.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**6:
        raise QuestionError(f"its '{key}' is no whole number")
    return value
