"""The same rounds over a link: the same bytes, and a round that no site can hold up."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.federated import Federation
from tests.links import LIMIT, FakeClock, MemoryLink, answers_of

from morphfed.core.errors import FederationError
from morphfed.core.progress import Event
from morphfed.federation.loop import FederationConfig, RoundLoop
from morphfed.federation.secure.rows import SummedRows
from morphfed.federation.transports.desk import Desk, RoundStates
from morphfed.federation.transports.parcel import Parcel, pack, unpack
from morphfed.federation.transports.patience import Clock, Patience
from morphfed.federation.transports.remote import Remote
from morphfed.federation.transports.standing import Look

SITES = ("kampala", "lagos", "quito")
ABOUT = {"study": "abc", "unit": "fedavg/all/seed-0", "version": "0.1.0"}


class Net:
    """A coordinator, and each site with a network of its own, as on machines of their own."""

    def __init__(self, folder: Path, *, quorum: float = 0.5, patience: Patience | None = None, **keys: object) -> None:
        self.folder, self.keys, self.quorum = folder, keys, quorum
        self.patience = patience or Patience(deadline=600, absent=120, poll=1, tell=15)
        self.clock, self.said, self.looks = FakeClock(), list[Event](), list[Look]()
        self.link = MemoryLink({name: self.desk(name) for name in SITES}, self.clock)

    def desk(self, name: str):  # type: ignore[no-untyped-def]  # bytes → bytes
        here = Federation(None, opened=self.folder / "opened", **self.keys)  # type: ignore[arg-type]
        site = next(site for site in here.sites if site.name == name)
        states = RoundStates(self.folder / name)
        return answers_of(Desk(site, states, network="net", ledger=lambda: f"head of {name}"))

    def remote(self) -> Remote:
        return Remote(
            SITES,
            self.link,
            ABOUT,
            quorum=self.quorum,
            limit=LIMIT,
            spool=self.folder / "spool",
            patience=self.patience,
            clock=Clock(self.clock.now, self.clock.sleep),
            report=self.said.append,
            observe=self.looks.append,
        )

    def loop(self, rounds: int = 3, stop_after: int | None = None) -> tuple[RoundLoop, Remote]:
        coordinator = Federation(self.folder / "coordinator", **self.keys)  # type: ignore[arg-type]
        remote = self.remote()
        secure = coordinator.loop._secure
        loop = RoundLoop(
            FederationConfig(rounds=rounds, quorum=self.quorum),
            coordinator=coordinator.coordinator,
            transport=SummedRows(remote, secure, classes=2, quorum=self.quorum) if secure else remote,
            store=coordinator.store,
            coding=coordinator.coding,
            secure=secure,
            share_counts=self.keys.get("train", {}).get("loss", {}).get("prior") == "federation",  # type: ignore[union-attr]
            report=self.said.append,
        )
        if stop_after is not None:
            real = loop._round

            def until(number: int) -> None:
                if number > stop_after:
                    raise KeyboardInterrupt
                real(number)

            loop._round = until  # type: ignore[method-assign]
        return loop, remote

    @property
    def warnings(self) -> str:
        return "\n".join(event.text for event in self.said if event.level == "warning")

    @property
    def told(self) -> list[str]:
        return [event.text for event in self.said if event.level == "info"]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"algorithm": "fedprox", "keys": {"mu": 0.1}},
        {"algorithm": "scaffold"},
        {"algorithm": "ditto"},
        {"algorithm": "fedmedian"},
        {"algorithm": "fedadam"},
        {"norm": "local"},
        {"keep_optimizer": True},
        {"upload": {"code": "int8"}},
        {"upload": {"code": "topk", "share": 0.1}, "download": "bf16"},
        {"retrogress": True},
        {"train": {"loss": {"kind": "class_balanced", "prior": "federation"}}},
    ],
    ids=str,
)
def test_over_a_link_the_model_is_that_of_one_process_to_the_byte(keys: dict[str, object], tmp_path: Path) -> None:
    here = Federation(tmp_path / "inprocess", **keys)  # type: ignore[arg-type]
    expected = here.loop.run()
    net = Net(tmp_path / "net", **keys)
    found = net.loop()[0].run()
    assert same(found.last, expected.last)
    assert same(found.best, expected.best)
    assert found.progress.best_round == expected.progress.best_round
    assert found.progress.class_counts == expected.progress.class_counts
    mine, theirs = ([{**entry, "seconds": 0} for entry in outcome.progress.history] for outcome in (found, expected))
    assert mine == theirs
    assert found.progress.bytes_up == expected.progress.bytes_up
    # What is private is at the sites, the same as the loop holds in one process.
    for site in here.sites:
        kept = RoundStates(tmp_path / "net" / site.name).of(3)[1]
        assert same(kept, site.state())


def test_what_a_site_has_already_is_not_sent_again(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.loop()[0].run()
    long = [(site, kind) for site, kind, whole in net.link.traffic if whole]
    # Each round's new model once: with the first training, and with each judging after it.
    assert long == [(s, "train") for s in SITES] + [(s, "evaluate") for _ in range(3) for s in SITES]


def test_a_coordinator_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    keys = {"algorithm": "scaffold"}
    expected = Federation(None, **keys).loop.run()  # type: ignore[arg-type]
    net = Net(tmp_path, **keys)
    with pytest.raises(KeyboardInterrupt):
        net.loop(stop_after=1)[0].run()
    # The sites have trained round 2 already when the coordinator dies, before its checkpoint.
    loop, remote = net.loop()
    loop._resume()
    cohort = {site: loop._coordinator.download(site) for site in SITES}
    loop._coordinator.begin_round(2, SITES)
    list(remote.train(2, 3, {site: loop._coordinator.download(site) for site in cohort}))
    assert same(net.loop()[0].run().last, expected.last)


@pytest.mark.parametrize("lost", ["memory", "newest file"])
def test_a_site_that_was_killed_goes_on_to_the_same_bytes(lost: str, tmp_path: Path) -> None:
    keys = {"algorithm": "scaffold", "norm": "local"}
    expected = Federation(None, **keys).loop.run()  # type: ignore[arg-type]
    net = Net(tmp_path, **keys)
    with pytest.raises(KeyboardInterrupt):
        net.loop(stop_after=2)[0].run()
    net.link.desks = {**net.link.desks, "lagos": net.desk("lagos")}
    if lost == "newest file":  # damaged while round 2's was written: the coordinator's round 2 must not be used
        (tmp_path / "lagos" / "round-00003.safetensors").write_bytes(b"torn")
    found = net.loop()[0].run()
    assert same(found.last, expected.last)


def test_a_site_that_is_gone_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.link.away = {"lagos"}
    net.link.seen["lagos"] = net.clock.time - 30
    before = net.clock.time
    found = net.loop(rounds=1)[0].run()
    assert [(r["site"], r["round"]) for r in found.progress.rejected] == [("lagos", 1)]
    assert "Site 'lagos': not connected, last seen " in found.progress.rejected[0]["reason"]
    assert set(found.progress.history[0]["sites"]) == {"kampala", "quito"}
    # Waited once for training; judging does not wait for it again.
    assert 120 <= net.clock.time - before < 130
    line = net.told[0]
    assert line.startswith("round 1: 2 of 3 sites back, waiting for lagos, last seen ")
    assert ", goes on without it at " in line
    # The same for whoever watches: with the quorum there, it is waited for as long as the absent are given.
    first, *_, last = [look for look in net.looks if look.step == "round 1"]
    assert first.waiting == ["lagos"]
    missing = first.sites["lagos"]
    assert (missing.connected, missing.seen, missing.until) == (False, before - 30, before + 120)
    assert (missing.asked, missing.answered) == (None, None)
    assert first.sites["kampala"].answered is not None
    assert (last.waiting, last.sites["lagos"].fault) == ([], "missed")
    assert "last seen" in last.sites["lagos"].why


def test_a_connected_site_that_never_answers_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.link.change = lambda site, question, answer: [] if site == "quito" else [answer]
    before = net.clock.time
    found = net.loop(rounds=1)[0].run()
    assert found.progress.rejected[0]["reason"].startswith("Site 'quito': no answer in 10 minutes")
    assert net.clock.time - before >= 600
    waits = [look.sites["quito"] for look in net.looks if look.waiting == ["quito"] and look.step == "round 1"]
    assert {site.until for site in waits} == {before + 600}
    assert all(site.asked is not None and site.answered is None for site in waits)


def test_without_a_quorum_the_run_ends_and_says_who_is_missing(tmp_path: Path) -> None:
    net = Net(tmp_path, quorum=0.6)
    net.link.away = {"lagos", "quito"}
    with pytest.raises(FederationError, match=r"1 of 3 sites.*2 are needed.*lagos.*quito"):
        net.loop(rounds=1)[0].run()


def test_a_site_that_comes_back_takes_part_again(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.link.away = {"lagos"}
    loop, _ = net.loop(rounds=2)
    real = loop._round

    def with_return(number: int) -> None:
        if number == 2:
            net.link.away = set()
        real(number)

    loop._round = with_return  # type: ignore[method-assign]
    found = loop.run()
    assert "lagos" in found.progress.history[1]["sites"]
    assert [r["round"] for r in found.progress.rejected] == [1]


def test_a_site_whose_answer_is_on_its_way_is_not_asked_again_when_its_network_is_back(tmp_path: Path) -> None:
    """It was away for so long that the server calls it new; its slow upload goes on where it was."""
    net = Net(tmp_path)
    tickets: list[str] = []
    slow: list[tuple[str, bytes]] = []
    post, take = net.link.post, net.link.take

    def noted(site: str, content: bytes, *, lifetime: float) -> str:
        ticket = post(site, content, lifetime=lifetime)
        if site == "lagos" and unpack(content, limit=LIMIT).kind == "train":
            tickets.append(ticket)
        return ticket

    def slowly(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if site != "lagos" or unpack(question, limit=LIMIT).kind != "train":
            return [answer]
        slow.append((tickets[-1], answer))
        net.link.begun.add(tickets[-1])
        net.link.since["lagos"] = net.clock.time + 5
        return []

    def later(asked: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        yield from take(asked)
        if slow and net.clock.time > 1_000_060:
            yield slow.pop()

    net.link.post, net.link.take, net.link.change = noted, later, slowly  # type: ignore[method-assign]
    found = net.loop(rounds=1)[0].run()
    assert len(tickets) == 1
    assert found.progress.rejected == []
    assert "started again" not in net.warnings


def test_a_site_that_was_started_again_is_asked_again(tmp_path: Path) -> None:
    net = Net(tmp_path)
    lost: list[str] = []

    def dies_once(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if site == "lagos" and not lost:
            lost.append(site)
            net.link.since["lagos"] = net.clock.time + 5
            return []
        return [answer]

    net.link.change = dies_once
    found = net.loop(rounds=1)[0].run()
    assert "site 'lagos' was started again" in net.warnings
    assert set(found.progress.history[0]["sites"]) == set(SITES)
    assert same(found.last, Federation(None, rounds=1).loop.run().last)


def test_a_site_whose_answer_was_lost_is_asked_again(tmp_path: Path) -> None:
    net = Net(tmp_path)
    lost: list[str] = []

    def loses_one(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if site == "lagos" and not lost:
            lost.append(site)
            return [None]
        return [answer]

    net.link.change = loses_one
    found = net.loop(rounds=1)[0].run()
    assert "the answer of site 'lagos' was lost on its way" in net.warnings
    assert same(found.last, Federation(None, rounds=1).loop.run().last)


def _spoilt(changes: dict[str, object]) -> object:
    """A network that changes the head or tensors of lagos's answer to its training."""

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        found = unpack(answer, limit=LIMIT)
        if site != "lagos" or unpack(question, limit=LIMIT).kind != "train":
            return [answer]
        if "bytes" in changes:
            return [changes["bytes"]]  # type: ignore[list-item]
        tensors = dict(found.tensors)
        if "tensor" in changes:
            name = next(iter(tensors))
            tensors[name] = changes["tensor"](tensors[name])  # type: ignore[operator]
        if "extra" in changes:
            tensors["extra"] = torch.ones(2)
        return [pack(replace(found, head={**found.head, **changes.get("head", {})}, tensors=tensors))]  # type: ignore[dict-item]

    return change


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"head": {"study": "other"}}, "for the study 'other', expected 'abc'"),
        ({"head": {"unit": "u"}}, "for the unit 'u'"),
        ({"head": {"site": "quito"}}, "for the site 'quito', expected 'lagos'"),
        ({"head": {"round": 7}}, "for the round '7', expected '1'"),
        ({"head": {"nonce": "0" * 32}}, "for the nonce '0000"),
        ({"head": {"weight": -3.0}}, "its weight is -3.0"),
        ({"head": {"weight": float("nan")}}, "its weight is nan"),
        ({"head": {"weight": "many"}}, "not numbers"),
        ({"head": {"metrics": {"loss": float("inf")}}}, "number 'loss' is inf"),
        ({"head": {"metrics": [1]}}, "not numbers"),
        ({"tensor": lambda t: t * float("nan")}, "holds NaN or infinity"),
        ({"tensor": lambda t: t[..., None]}, "expected float32"),
        ({"tensor": lambda t: t.double()}, "has float64"),
        ({"extra": True}, "not asked for: 1 (extra)"),
        ({"bytes": b"junk"}, "cannot be read"),
        ({"bytes": b"\xff" * 100}, "cannot be read"),
        ({"bytes": bytes(LIMIT + (2 << 20))}, "at most"),
        ({"bytes": pack(Parcel("greeting"))}, "kind 'greeting'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_upload_is_rejected_by_name_and_the_others_go_on(
    changes: dict[str, object], why: str, tmp_path: Path
) -> None:
    net = Net(tmp_path)
    net.link.change = _spoilt(changes)  # type: ignore[assignment]
    found = net.loop(rounds=1)[0].run()
    (rejected,) = found.progress.rejected
    assert rejected["site"] == "lagos"
    assert "'lagos'" in rejected["reason"]
    assert why in rejected["reason"]
    left = Federation(None, rounds=1)
    left.loop._transport.train = _without(left, "lagos")  # type: ignore[method-assign]
    assert same(found.last, left.loop.run().last)


def _without(federation: Federation, name: str):  # type: ignore[no-untyped-def]
    from morphfed.core.types import Failure

    real = federation.transport.train

    def train(*arguments: object) -> Iterator[object]:
        for answer in real(*arguments):  # type: ignore[arg-type]
            yield Failure(name, 1, "away") if answer.site == name else answer

    return train


@pytest.mark.parametrize("given", [["many"], None, {"a": 1}, [float("nan")], [True], [[1, 2]], "12"], ids=str)
def test_counts_that_are_no_numbers_leave_the_site_out_and_end_nothing(given: object, tmp_path: Path) -> None:
    net = Net(tmp_path, train={"loss": {"kind": "class_balanced", "prior": "federation"}})

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        found = unpack(answer, limit=LIMIT)
        if site == "lagos" and unpack(question, limit=LIMIT).kind == "counts":
            return [pack(replace(found, head={**found.head, "counts": given}))]
        return [answer]

    net.link.change = change
    assert set(net.remote().class_counts()) == {"kampala", "quito"}
    assert "class counts: Site 'lagos': its 'counts' is no row of numbers" in net.warnings


@pytest.mark.parametrize("given", [{"quito": {"macro_f1": 1.0}}, {"lagos": {"macro_f1": "best"}}, [1], None], ids=str)
def test_a_validation_in_anothers_name_or_without_numbers_is_left_out(given: object, tmp_path: Path) -> None:
    net = Net(tmp_path)

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        found = unpack(answer, limit=LIMIT)
        if site == "lagos" and unpack(question, limit=LIMIT).kind == "evaluate":
            return [pack(replace(found, head={**found.head, "validation": given}))]
        return [answer]

    net.link.change = change
    found = net.loop(rounds=1)[0].run()
    judged = {s for s, entry in found.progress.history[0]["sites"].items() if "validation" in entry}
    assert judged == {"kampala", "quito"}
    assert "Site 'lagos': its validation" in net.warnings


def test_late_double_and_unasked_answers_are_named_and_not_used(tmp_path: Path) -> None:
    net = Net(tmp_path)
    kept: list[bytes] = []

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if unpack(question, limit=LIMIT).kind != "train":
            return [answer]
        if site == "quito" and not kept:
            kept.append(answer)
            return []
        return [answer, answer]

    net.link.change = change
    loop, _ = net.loop(rounds=2)
    real = loop._round

    def with_post(number: int) -> None:
        if number == 2:
            net.link.extra = [("ticket-3", kept[0]), ("ticket-nobody", kept[0])]
        real(number)

    loop._round = with_post  # type: ignore[method-assign]
    found = loop.run()
    assert "came twice" in net.warnings
    assert "round 1: the answer of site 'quito' came after it was given up; it was not used" in net.warnings
    assert "an answer to no question" in net.warnings
    assert [r["round"] for r in found.progress.rejected] == [1]


def test_the_start_waits_for_a_site_that_is_not_ready_and_says_why(tmp_path: Path) -> None:
    net = Net(tmp_path)
    ready = net.link.desks["lagos"]
    begin = net.clock.time

    def asks_for_approval(content: bytes) -> bytes:
        if net.clock.time > begin + 60:
            return ready(content)
        head = unpack(content, limit=LIMIT).head
        return pack(Parcel("refusal", {**head, "why": "the study abc is not approved"}))

    net.link.desks = {**net.link.desks, "lagos": asks_for_approval}
    net.remote().gather("net", wait=600)
    assert net.warnings.count("Site 'lagos': it refuses: the study abc is not approved.") == 1
    assert 60 <= net.clock.time - begin < 80
    assert net.told[0].startswith("start: 2 of 3 sites ready, waiting for lagos until ")
    refused = [look.sites["lagos"] for look in net.looks if look.sites["lagos"].fault == "refused"]
    assert refused[0].why == "it refuses: the study abc is not approved"
    assert refused[0].until == begin + 600
    assert net.looks[-1].sites["lagos"].fault == ""
    assert net.looks[-1].waiting == []


def test_a_site_with_another_initial_network_is_refused_at_the_start(tmp_path: Path) -> None:
    net = Net(tmp_path, quorum=1.0)
    with pytest.raises(FederationError, match="initial network here is not the coordinator's"):
        net.remote().gather("another", wait=30)


def test_the_last_hash_of_each_ledger_is_kept_at_the_coordinator(tmp_path: Path) -> None:
    net = Net(tmp_path)
    loop, remote = net.loop(rounds=1)
    loop.run()
    assert remote.ledgers == {name: f"head of {name}" for name in SITES}


def test_what_travels_is_counted_site_by_site(tmp_path: Path) -> None:
    net = Net(tmp_path)
    sent, received = dict.fromkeys(SITES, 0), dict.fromkeys(SITES, 0)

    def weigh(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        sent[site] += len(question)
        received[site] += len(answer)
        return [answer]

    net.link.change = weigh
    net.loop(rounds=2)[0].run()
    last = net.looks[-1].sites
    assert {site: standing.sent for site, standing in last.items()} == sent
    assert {site: standing.received for site, standing in last.items()} == received


def test_states_of_old_rounds_are_dropped_but_the_best_stays(tmp_path: Path) -> None:
    states = RoundStates(tmp_path)
    for number in range(1, 9):
        states.save(number, {"x": torch.tensor(float(number))}, best=2)
    assert states.rounds() == [2, 6, 7, 8]
    assert states.of(5)[0] == 2
    assert float(states.before(8)[1]["x"]) == 7
    states.save(7, {"x": torch.tensor(70.0)}, best=2)  # done again
    assert states.rounds() == [2, 6, 7]
    assert states.before(1) == (0, {})


def test_a_round_without_private_state_is_kept_too(tmp_path: Path) -> None:
    states = RoundStates(tmp_path)
    states.save(1, {}, best=0)
    assert states.of(4) == (1, {})
