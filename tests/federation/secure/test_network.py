"""Sums over a link: the bytes of one process, lost answers, sites and coordinators that die between two steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federated import Federation
from tests.federation.test_remote import SITES, Net, same
from tests.links import LIMIT

pytest.importorskip("cryptography", reason="the extra 'secure' is not installed")

from morphfed.core.errors import FederationError, SecureSumError
from morphfed.federation.transports.parcel import Parcel, pack, unpack

STEPS = ("keys", "shares", "masked", "opened")


def step_of(question: bytes) -> str:
    found = unpack(question, limit=LIMIT)
    return str(found.head.get("step")) if found.kind == "secure" else ""


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm": "scaffold"},
        {"norm": "local", "download": "bf16"},
        {"train": {"loss": {"kind": "class_balanced", "prior": "federation"}}},
    ],
    ids=str,
)
def test_over_a_link_the_model_is_that_of_one_process_to_the_byte(keys: dict[str, Any], tmp_path: Path) -> None:
    expected = Federation(None, secure={}, **keys).loop.run()
    net = Net(tmp_path, secure={}, **keys)
    found = net.loop()[0].run()
    assert same(found.last, expected.last)
    assert same(found.best, expected.best)
    mine, theirs = ([{**entry, "seconds": 0} for entry in outcome.progress.history] for outcome in (found, expected))
    assert mine == theirs
    assert found.progress.bytes_up == expected.progress.bytes_up
    assert found.progress.class_counts == expected.progress.class_counts
    assert {kind for _, kind, _ in net.link.traffic} == {"secure", "evaluate"}
    # A download goes with the first step alone.
    whole = [(site, kind) for site, kind, tensors in net.link.traffic if tensors]
    assert whole == [(s, "secure") for s in SITES] + [(s, "evaluate") for _ in range(3) for s in SITES]


@pytest.mark.parametrize("step", STEPS)
def test_an_answer_that_is_lost_at_any_step_is_asked_for_again(step: str, tmp_path: Path) -> None:
    net, lost = Net(tmp_path, secure={}), list[str]()

    def loses_one(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if site == "lagos" and step_of(question) == step and not lost:
            lost.append(site)
            return [None]
        return [answer]

    net.link.change = loses_one
    found = net.loop(rounds=1)[0].run()
    assert lost
    assert "the answer of site 'lagos' was lost on its way" in net.warnings
    assert not found.progress.rejected
    assert same(found.last, Federation(None, rounds=1, secure={}).loop.run().last)


@pytest.mark.parametrize("step", ["shares", "masked"])
def test_a_site_that_is_started_again_between_two_steps_is_left_out(step: str, tmp_path: Path) -> None:
    net = Net(tmp_path, secure={})
    answer = net.link.desks["lagos"]

    def restarts(question: bytes) -> bytes:
        nonlocal answer
        if step_of(question) == step:
            answer = net.desk("lagos")  # its keys were in its memory
        return answer(question)

    net.link.desks = {**net.link.desks, "lagos": restarts}
    found = net.loop(rounds=1)[0].run()
    (rejected,) = found.progress.rejected
    assert rejected["site"] == "lagos"
    assert "no keys of this session; it was started again" in rejected["reason"]
    assert set(found.progress.history[0]["sites"]) >= {"kampala", "quito", "together"}


def test_a_site_that_goes_before_it_uploads_is_recovered_from(tmp_path: Path) -> None:
    net = Net(tmp_path, secure={})
    real = net.link.desks["quito"]

    def dies(question: bytes) -> bytes:
        if step_of(question) == "masked":
            net.link.away = {"quito"}
            net.link.seen["quito"] = net.clock.time
        return real(question)

    net.link.desks = {**net.link.desks, "quito": dies}
    net.link.change = lambda site, question, answer: [] if site in net.link.away else [answer]
    found = net.loop(rounds=1)[0].run()
    (rejected,) = found.progress.rejected
    assert "Site 'quito'" in rejected["reason"]
    # The mean is that of the two that stayed.
    here = Federation(None, rounds=1, secure={})
    exchange = here.transport.exchange

    def without(step: str, *given: Any) -> Any:
        from morphfed.core.types import Failure

        for answer in exchange(step, *given):
            yield Failure("quito", 1, "gone") if answer.site == "quito" and step == "masked" else answer

    here.transport.exchange = without  # type: ignore[method-assign]
    assert same(found.last, here.loop.run().last)


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_that_dies_at_any_step_repeats_the_round_with_new_keys(step: str, tmp_path: Path) -> None:
    net, dead = Net(tmp_path, secure={}), list[str]()
    masked: list[tuple[str, bytes]] = []

    def watch(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if step_of(question) == "masked":
            masked.append((site, unpack(answer, limit=LIMIT).tensors["masked"].numpy().tobytes()))
        if step_of(question) == step and unpack(question, limit=LIMIT).head["round"] == 2 and not dead:
            dead.append(step)
            raise KeyboardInterrupt
        return [answer]

    net.link.change = watch
    with pytest.raises(KeyboardInterrupt):
        net.loop(rounds=2)[0].run()
    net.link.posted.clear()
    found = net.loop(rounds=2)[0].run()
    assert same(found.last, Federation(None, rounds=2, secure={}).loop.run().last)
    assert len({content for _, content in masked}) == len(masked)  # no upload was masked twice in the same way


def test_a_question_that_changes_is_refused_and_the_same_gets_the_same_answer(tmp_path: Path) -> None:
    net, seen = Net(tmp_path, secure={}), dict[str, bytes]()

    def keep(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if site == "lagos" and (step := step_of(question)):
            seen[step] = question
            if step == "opened":
                answers.extend(_again(net, seen))
        return [answer]

    answers: list[Parcel] = []
    net.link.change = keep
    net.loop(rounds=1)[0].run()
    shares, altered, opened, other = answers
    assert shares.kind == opened.kind == "answer"
    assert altered.kind == other.kind == "refusal"
    assert "was asked for before, with other values" in altered.head["why"]
    assert "was asked for before, with other values" in other.head["why"]


def _again(net: Net, seen: dict[str, bytes]) -> list[Parcel]:
    ask = net.link.desks["lagos"]

    def altered(step: str, key: str, value: Any) -> bytes:
        found = unpack(seen[step], limit=LIMIT)
        return pack(replace(found, head={**found.head, key: value}))

    head = unpack(seen["shares"], limit=LIMIT).head
    fewer = {site: advert for site, advert in head["adverts"].items() if site != "quito"}
    questions = [
        seen["shares"],
        altered("shares", "adverts", fewer),
        seen["opened"],
        altered("opened", "survivors", ["kampala", "lagos"]),
    ]
    return [unpack(ask(question), limit=LIMIT) for question in questions]


@pytest.mark.parametrize(
    ("step", "head", "tensors", "why"),
    [
        ("keys", {"numbers": {"changes": "x"}}, None, "'numbers' are no whole numbers"),
        ("keys", {"numbers": {"changes": 40, "rest": 0, "weight": 1}}, None, "range 'changes'"),
        ("keys", {}, {}, "its keys are missing"),
        ("shares", {}, {}, "one sealed share for each other site"),
        ("masked", {}, {"masked": torch.zeros(3, dtype=torch.int32)}, "not of the shape that the study declares"),
        ("masked", {}, {}, "not of the shape"),
        ("opened", {}, {"of/lagos": torch.zeros(66, dtype=torch.uint8)}, "not one share of each secret"),
        ("opened", {}, {"of/lagos": torch.zeros(66)}, "what should be bytes is not"),
    ],
)
def test_nonsense_at_any_step_is_named_and_the_others_go_on(
    step: str, head: dict[str, Any], tensors: dict[str, torch.Tensor] | None, why: str, tmp_path: Path
) -> None:
    net = Net(tmp_path, secure={})

    def spoil(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        found = unpack(answer, limit=LIMIT)
        if site != "lagos" or step_of(question) != step:
            return [answer]
        spoilt = found.tensors if tensors is None else tensors
        return [pack(replace(found, head={**found.head, **head}, tensors=spoilt))]

    net.link.change = spoil
    found = net.loop(rounds=1)[0].run()
    said = net.warnings if step == "opened" else found.progress.rejected[0]["reason"]
    assert "'lagos'" in said
    assert why in said


def test_without_enough_sites_the_round_ends_and_says_why(tmp_path: Path) -> None:
    net = Net(tmp_path, secure={"threshold": 3})
    net.link.away = {"lagos"}
    with pytest.raises(FederationError, match=r"2 of 3 sites are ready for the sum, 3 are needed.*lagos"):
        net.loop(rounds=1)[0].run()


def test_a_site_remembers_what_it_opened_over_its_own_death(tmp_path: Path) -> None:
    net = Net(tmp_path, secure={})
    net.loop(rounds=1)[0].run()
    assert (tmp_path / "opened" / "lagos.json").is_file()
    again = Net(tmp_path, secure={})  # every site started again, and the coordinator's folder lost
    for file in (tmp_path / "coordinator" / "checkpoint").glob("*"):
        file.unlink()
    again.link.away = {"quito"}
    with pytest.raises(SecureSumError, match="0 sites have answered the last step"):
        again.loop(rounds=1)[0].run()
    assert "would give away what single sites sent" in again.warnings
