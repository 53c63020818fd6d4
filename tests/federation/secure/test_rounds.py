"""Rounds of sums in one process: FedAvg's model within the stated rounding, and a site that goes at any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federated import Federation

pytest.importorskip("cryptography", reason="the extra 'secure' is not installed")

from morphfed.core.errors import FederationError, PrivacyError, SecureSumError
from morphfed.core.progress import Event
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.secure.plan import CHANGES, REST, Scales
from morphfed.federation.secure.total import Total
from morphfed.federation.transports.base import Note

SITES = {"kampala": 12, "lagos": 8, "quito": 6, "sucre": 9, "turin": 7}


def totals_of(federation: Federation) -> list[Total]:
    """What the coordinator learns, round by round."""
    sums = federation.loop._secure
    assert sums is not None
    seen: list[Total] = []
    real = sums.of_round

    def run(*given: Any, **named: Any) -> Total:
        total = real(*given, **named)
        seen.append(total)
        return total

    sums.of_round = run  # type: ignore[method-assign]
    return seen


class Dropping:
    """The transport of one process, whose sites go at a step: they do not answer it and those after it."""

    def __init__(self, federation: Federation, gone: Mapping[str, Collection[str]], rounds: Collection[int]) -> None:
        self.gone, self.rounds, self.real = gone, rounds, federation.transport.exchange
        self.notes: list[tuple[str, Note]] = []
        federation.transport.exchange = self.exchange  # type: ignore[method-assign]

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        for site, question in asked.items():
            if round_number in self.rounds and site in self.gone.get(step, ()):
                yield Failure(site, round_number, f"Site '{site}': gone.")
                continue
            (answer,) = self.real(step, round_number, rounds, {site: question}, downloads)
            if isinstance(answer, Note):
                self.notes.append((step, Note(site, answer.numbers, {k: t.clone() for k, t in answer.tensors.items()})))
            yield answer


def plain_without(names: Collection[str], **keys: Any) -> Federation:
    """The same round without secure aggregation, whose uploads of ``names`` are missing."""
    federation = Federation(None, sizes=SITES, **keys)
    real = federation.transport.train

    def train(*arguments: Any) -> Iterator[Upload | Failure]:
        for answer in real(*arguments):
            yield Failure(answer.site, 1, "away") if answer.site in names else answer

    federation.transport.train = train  # type: ignore[method-assign]
    return federation


def near(found: Tensors, expected: Tensors, allowed: float) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], rtol=0, atol=allowed) for name in expected
    )


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"keys": {"weighting": "uniform"}},
        {"algorithm": "fedprox", "keys": {"mu": 0.1}},
        {"algorithm": "scaffold"},
        {"algorithm": "ditto"},
        {"algorithm": "fedbn"},
        {"algorithm": "fedrep"},
        {"algorithm": "fedavgm"},
        {"norm": "local"},
        {"download": "bf16"},
        {"noise": {"kind": "as_published", "alpha": 0.01}},
    ],
    ids=str,
)
def test_one_round_is_the_plain_one_within_the_stated_error(keys: dict[str, Any]) -> None:
    plain = Federation(None, sizes=SITES, rounds=1, **keys)
    expected = plain.loop.run()
    here = Federation(None, sizes=SITES, rounds=1, secure={}, **keys)
    totals = totals_of(here)
    found = here.loop.run()
    (total,) = totals
    # The bound, and the last bits of float32 on both sides.
    assert max(total.error.values()) < 1e-6
    assert near(found.last, expected.last, max(total.error.values()) + 4e-7)
    assert found.progress.steps == expected.progress.steps
    assert found.progress.images_seen == expected.progress.images_seen
    losses = expected.progress.history[0]["sites"]
    mean = sum(losses[s]["loss"] * n for s, n in SITES.items()) / sum(SITES.values())
    if keys.get("algorithm") not in ("ditto", "fedrep"):  # which count the images of two trainings
        assert found.progress.history[0]["sites"]["together"]["loss"] == pytest.approx(mean, abs=1e-5)
    assert all(found.progress.history[0]["sites"][site].keys() == {"validation"} for site in SITES)


def test_many_rounds_stay_near_the_plain_ones_and_repeat_to_the_byte(tmp_path: Path) -> None:
    # Without batch norm: a bias before it has no gradient, and AdamW makes steps of whatever rounding leaves there.
    keys: dict[str, Any] = {"sizes": SITES, "rounds": 4, "norm": "none"}
    expected = Federation(None, **keys).loop.run()
    first, second = (Federation(tmp_path / n, **keys, secure={}).loop.run() for n in "ab")
    assert near(first.last, expected.last, 1e-4)
    # Keys differ from run to run, sums do not.
    assert all(torch.equal(first.last[name], second.last[name]) for name in first.last)


def test_sixteen_bits_are_rounded_within_their_bound() -> None:
    expected = Federation(None, sizes=SITES, rounds=1).loop.run()
    here = Federation(None, sizes=SITES, rounds=1, secure={"bits": 16})
    totals = totals_of(here)
    found = here.loop.run()
    bound = max(totals[0].error.values())
    assert 1e-6 < bound < 1e-3
    gaps = [float((found.last[name] - expected.last[name]).abs().max()) for name in expected.last]
    assert 0 < max(gaps) <= bound + 4e-7


def test_the_error_that_is_told_is_the_documented_formula() -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={})
    totals, dropping = totals_of(here), Dropping(here, {}, ())
    here.loop.run()
    claims = [note.numbers for step, note in dropping.notes if step == "keys"]
    for kind in (CHANGES, REST):
        largest = max(c[kind] for c in claims)
        agreed = sum(2.0 ** c["weight"] for c in claims)
        assert totals[0].error[kind] == pytest.approx(5 / 2 * 2.0 ** (largest - 30) * agreed / sum(SITES.values()))


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ({"keys": ["kampala"]}, ["kampala"]),
        ({"shares": ["lagos"]}, ["lagos"]),
        ({"masked": ["quito"]}, ["quito"]),
        ({"opened": ["sucre"]}, []),
        ({"keys": ["turin"], "masked": ["lagos"]}, ["turin", "lagos"]),
        ({"masked": ["kampala", "turin"]}, ["kampala", "turin"]),
        ({"shares": ["sucre"], "opened": ["quito"]}, ["sucre"]),
    ],
    ids=str,
)
def test_a_site_that_goes_at_any_step_is_left_out_and_named(
    gone: dict[str, list[str]], missing: list[str], tmp_path: Path
) -> None:
    expected = plain_without(set(missing), rounds=1).loop.run()
    here = Federation(tmp_path, sizes=SITES, rounds=1, secure={})
    Dropping(here, gone, {1})
    totals = totals_of(here)
    found = here.loop.run()
    assert near(found.last, expected.last, max(totals[0].error.values()) + 4e-7)
    assert set(totals[0].sites) == set(SITES) - set(missing)
    assert totals[0].weight == sum(n for s, n in SITES.items() if s not in missing)
    assert {r["site"] for r in found.progress.rejected} == set(missing)


@pytest.mark.parametrize("step", ["keys", "shares", "masked"])
def test_below_the_threshold_the_round_ends_and_nothing_is_opened(step: str, tmp_path: Path) -> None:
    here = Federation(tmp_path, sizes=SITES, rounds=2, secure={"threshold": 4})
    dropping = Dropping(here, {step: ["kampala", "lagos"]}, {2})
    with pytest.raises(FederationError, match=r"Round 2: 3 of 5 sites .*4 are needed.*kampala.*No upload was seen"):
        here.loop.run()
    assert {s for s, _ in dropping.notes[5 * 4 :]} <= {"keys", "shares", "masked"}  # nobody was asked to open
    # The round is begun again with new keys, and the run ends as if nothing had happened.
    again = Federation(tmp_path, sizes=SITES, rounds=2, secure={"threshold": 4})
    expected = Federation(None, sizes=SITES, rounds=2, secure={"threshold": 4}).loop.run()
    found = again.loop.run()
    assert all(torch.equal(found.last[name], expected.last[name]) for name in expected.last)


def test_when_too_few_help_to_open_the_sum_stays_masked(tmp_path: Path) -> None:
    here = Federation(tmp_path, sizes=SITES, rounds=1, secure={})
    Dropping(here, {"opened": ["kampala", "lagos", "quito"]}, {1})
    before = {k: t.clone() for k, t in here.coordinator.model().items()}
    with pytest.raises(SecureSumError, match="2 sites have answered the last step, fewer than the 3"):
        here.loop.run()
    assert all(torch.equal(before[k], t) for k, t in here.coordinator.model().items())


def test_a_round_that_is_begun_again_has_new_keys_and_other_masks(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):  # the coordinator dies before its checkpoint, and the same round is trained again
        here = Federation(None, sizes=SITES, rounds=1, secure={}, opened=tmp_path)
        dropping = Dropping(here, {}, ())
        here.loop.run()
        seen.append(dropping.notes)
    first, second = ({(step, n.site): n.tensors for step, n in notes} for notes in seen)
    for site in SITES:
        for key in ("sealing", "masking", "commitment"):
            assert not torch.equal(first["keys", site][key], second["keys", site][key])
        left, right = first["masked", site]["masked"], second["masked", site]["masked"]
        assert float((left == right).float().mean()) < 0.05


def test_a_round_is_opened_for_one_set_of_sites_only(tmp_path: Path) -> None:
    Federation(None, sizes=SITES, rounds=1, secure={}, opened=tmp_path).loop.run()
    again = Federation(None, sizes=SITES, rounds=1, secure={}, opened=tmp_path)
    Dropping(again, {"masked": ["quito"]}, {1})
    said: list[Event] = []
    again.loop._report = said.append
    with pytest.raises(SecureSumError, match="0 sites have answered the last step"):
        again.loop.run()
    refused = [event.text for event in said if "would give away what single sites sent" in event.text]
    assert len(refused) == 4


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda t: t * float("nan"), "has changed by nan, more than federation.secure.largest"),
        (lambda t: t + 1e6, "has changed by 1e+06, more than federation.secure.largest = 65536"),
        (lambda t: t * float("inf"), "has changed by"),
    ],
    ids=["nan", "large", "inf"],
)
def test_a_site_refuses_what_does_not_fit_and_nothing_is_clipped(
    spoil: Callable[[torch.Tensor], torch.Tensor], why: str
) -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={})
    site = here.sites[1]
    real = site._make

    def made(*given: Any) -> Upload:
        upload = real(*given)
        name = next(iter(upload.tensors))
        return Upload(
            upload.site, upload.round, {**upload.tensors, name: spoil(upload.tensors[name])}, 8, upload.metrics
        )

    site._make = made  # type: ignore[method-assign]
    dropping = Dropping(here, {}, ())
    found = here.loop.run()
    (rejected,) = found.progress.rejected
    assert rejected["site"] == "lagos"
    assert why in rejected["reason"]
    assert not [note for _, note in dropping.notes if note.site == "lagos"]
    assert near(found.last, plain_without({"lagos"}, rounds=1).loop.run().last, 1e-6)


def test_values_that_just_fit_are_exact_where_clipping_would_show() -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={"largest": 2000.0}, norm="none")
    plain = Federation(None, sizes=SITES, rounds=1, norm="none")
    for federation in (here, plain):
        site, name = federation.sites[1], "6.weight"
        real = site._make

        def made(*given: Any, real: Any = real, name: str = name) -> Upload:
            upload = real(*given)
            return replace(upload, tensors={**upload.tensors, name: upload.tensors[name] + 1999.0})

        site._make = made  # type: ignore[method-assign]
    totals = totals_of(here)
    found, expected = here.loop.run(), plain.loop.run()
    gap = (found.last["6.weight"] - expected.last["6.weight"]).abs().max()
    assert float(expected.last["6.weight"].max()) > 300
    assert float(gap) <= totals[0].error[CHANGES] + 300 * 2**-22


def test_the_coordinator_gets_bytes_that_look_random_and_no_number_of_a_site() -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={})
    dropping = Dropping(here, {}, ())
    here.loop.run()
    assert {s for s, _ in dropping.notes} == {"keys", "shares", "masked", "opened"}
    for step, note in dropping.notes:
        assert set(note.numbers) == ({"changes", "rest", "weight"} if step == "keys" else set())
        if step == "masked":
            # Uniform integers of 32 bits: mean 0 within five standard deviations, and no small one to speak of.
            values = note.tensors["masked"].double()
            assert abs(float(values.mean())) < 5 * 2**32 / 12**0.5 / len(values) ** 0.5
            assert float((values.abs() < 2**20).double().mean()) < 0.05
            assert int(note.tensors["numbers"].abs().min()) > 2**40
    weights = {note.site: note.numbers["weight"] for step, note in dropping.notes if step == "keys"}
    assert weights == {"kampala": 4, "lagos": 3, "quito": 3, "sucre": 4, "turin": 3}  # 12 → 16, 8 → 8, 6 → 8, 9 → 16


def test_a_gate_of_sums_lets_no_upload_out_and_no_step_that_is_not_declared(tmp_path: Path) -> None:
    here = Federation(tmp_path, sizes=SITES, rounds=1, secure={})
    download = here.coordinator.download("lagos")
    with pytest.raises(PrivacyError, match="an upload without masks is not declared and did not leave"):
        here.sites[1].train(1, 1, download)
    gate, about = here.gates["lagos"], {"about": {}}
    good = {"masked": torch.zeros(here.plan.length, dtype=torch.int32)}  # type: ignore[union-attr]
    gate.release_step("masked", 1, good, {}, **about)
    for step, tensors, numbers in (
        ("masked", {"masked": torch.zeros(3, dtype=torch.int32)}, {}),
        ("masked", {"model": good["masked"]}, {}),
        ("keys", {"sealing": torch.zeros(33, dtype=torch.uint8)}, {}),
        ("keys", {"weights": torch.zeros(3, dtype=torch.uint8)}, {}),
        ("keys", {}, {"images": 12}),
        ("shares", {"to/nowhere": torch.zeros(3, dtype=torch.uint8)}, {}),
        ("shares", {"of/lagos": torch.zeros(3, dtype=torch.uint8)}, {}),
        ("opened", {"of/lagos": torch.zeros(66)}, {}),
        ("opened", {}, {"weight": 1}),
        ("else", {"of/lagos": torch.zeros(66, dtype=torch.uint8)}, {}),
    ):
        with pytest.raises(PrivacyError, match="is not declared and did not leave"):
            gate.release_step(step, 1, tensors, numbers, **about)  # type: ignore[arg-type]
    plain = Federation(None, sizes=SITES, rounds=1)
    with pytest.raises(PrivacyError, match="a secure sum's step 'masked'"):
        plain.gates["lagos"].release_step("masked", 1, good, {}, **about)


def test_the_ledger_has_every_byte_and_no_image_count(tmp_path: Path) -> None:
    here = Federation(tmp_path, sizes=SITES, rounds=2, secure={})
    found = here.loop.run()
    lines = [json.loads(line) for site in SITES for line in (tmp_path / f"{site}.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert {line["step"] for line in steps} == {"keys", "shares", "masked", "opened"}
    assert sum(line["bytes"] for line in steps) == found.progress.bytes_up
    assert not any("weight" in line for line in lines)
    assert len({line["secure"]["session"] for line in steps}) == 2
    assert steps[0]["secure"] == {"session": steps[0]["secure"]["session"], "threshold": 3, "sites": 5, "bits": 32}
    assert "public keys" in steps[0]["purpose"]


def test_an_undeclared_tensor_does_not_enter_a_sum() -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={})
    site = here.sites[0]
    real = site._make

    def made(*given: Any) -> Upload:
        upload = real(*given)
        return replace(upload, tensors={**upload.tensors, "images": torch.ones(2)})

    site._make = made  # type: ignore[method-assign]
    with pytest.raises(PrivacyError, match="not what was declared for the sum"):
        here.loop.run()


def test_memory_of_the_coordinator_does_not_grow_with_the_sites() -> None:
    few, many = (
        Federation(None, sizes={f"s{i}": 4 for i in range(n)}, rounds=1, secure={}).loop._secure for n in (3, 12)
    )
    assert few is not None
    assert many is not None
    assert sum(w.nbytes for w in few._words.values()) == sum(w.nbytes for w in many._words.values())


def test_scales_hold_every_site_that_claimed() -> None:
    from morphfed.privacy.secure.keys import Advert

    here = Federation(None, sizes=SITES, rounds=1, secure={})
    plan = here.plan
    assert plan is not None
    adverts = {s: Advert(b"", b"", b"", {"changes": -i, "rest": i, "weight": i}, {}) for i, s in enumerate(SITES)}
    scales = Scales.of(plan, adverts)
    assert scales.largest(CHANGES, 32) == 1.0
    assert scales.largest(REST, 32) == 16.0
    assert scales.total == 31.0
    for claims, why in (
        ({"changes": 17, "rest": 0, "weight": 0}, r"range 'changes' is 2\^17, at most 2\^16"),
        ({"changes": 0, "rest": -999, "weight": 0}, "range 'rest'"),
        ({"changes": 0, "rest": 0, "weight": 40}, "weight"),
        ({"changes": 0, "rest": 0}, "does not tell its ranges"),
    ):
        with pytest.raises(ValueError, match=why):
            plan.check(Advert(b"", b"", b"", claims, {}))


def test_class_counts_and_temperatures_come_as_one_sum(tmp_path: Path) -> None:
    from morphfed.federation.calibrate import fit_temperature

    keys: dict[str, Any] = {
        "sizes": SITES,
        "rounds": 1,
        "train": {"loss": {"kind": "class_balanced", "prior": "federation"}},
        "calibrate": True,
    }
    plain, here = Federation(None, **keys), Federation(tmp_path, **keys, secure={})
    expected, found = plain.loop.run(), here.loop.run()
    assert found.progress.class_counts == expected.progress.class_counts == [22, 20]
    downloads = dict.fromkeys(SITES, expected.last)
    mine = fit_temperature(here.asked, downloads, rounds=1)
    theirs = fit_temperature(plain.asked, downloads, rounds=1)
    assert mine.images == theirs.images == 50
    assert mine.temperature == pytest.approx(theirs.temperature, rel=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "lagos.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "statistic" in line]
    assert {line["statistic"] for line in rows} == {"class_counts", "temperature"}
    assert all(line["step"] in ("keys", "shares", "masked", "opened") for line in rows)
    assert not any("values" in line for line in lines)
    for ask in (
        lambda: here.sites[1].class_counts(),
        lambda: here.sites[1].validation_sums("temperature", 1, expected.last, np.ones(65), temperature=1.0, views=1),
    ):
        with pytest.raises(PrivacyError, match="without masks"):
            ask()
    with pytest.raises(PrivacyError, match="statistic 'confidence'"):
        here.members["lagos"].row("x", "what", "confidence", 0, np.ones(3))
    numbers = {"numbers": torch.ones(3, dtype=torch.int64)}
    with pytest.raises(PrivacyError, match=r"'numbers' as Spec\(shape=\(3,\)"):
        here.gates["lagos"].release_step("masked", 0, numbers, {}, about={}, statistic="class_counts")


def test_a_site_without_a_row_is_left_out_of_the_sum_and_named() -> None:
    here = Federation(None, sizes=SITES, secure={}, train={"loss": {"kind": "class_balanced", "prior": "federation"}})
    said: list[Event] = []
    here.asked._report = said.append  # type: ignore[union-attr]
    Dropping(here, {"keys": ["kampala"]}, {0})
    assert here.asked.class_counts()["together"].tolist() == [16, 14]
    assert [event.text for event in said] == ["class_counts: Site 'kampala': gone."]
    Dropping(here, {"masked": ["kampala", "lagos", "quito"]}, {0})
    with pytest.raises(FederationError, match=r"class_counts: 2 of 5 sites .*3 are needed.*quito"):
        here.asked.class_counts()


def test_a_site_that_is_given_another_model_takes_part_in_no_sum() -> None:
    here = Federation(None, sizes=SITES, rounds=1, secure={})
    real = here.transport.exchange

    def crafted(step: str, number: int, rounds: int, asked: Any, downloads: Mapping[str, Tensors]) -> Any:
        if step == "keys":  # for all but one a model from which nothing is learned
            still = {name: torch.zeros_like(tensor) for name, tensor in downloads["lagos"].items()}
            downloads = {site: d if site == "lagos" else still for site, d in downloads.items()}
        return real(step, number, rounds, asked, downloads)

    here.transport.exchange = crafted  # type: ignore[method-assign]
    with pytest.raises(FederationError, match=r"0 of 5 sites have sent what is to be summed.*was shown other keys"):
        here.loop.run()
