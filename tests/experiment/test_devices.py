"""Units over GPUs, images on GPUs, and what is compiled there: decided on a machine without one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.federated import make_set

from morphfed.core.files import read_json
from morphfed.core.progress import Event
from morphfed.experiment import compiling, pool, residence, runner
from morphfed.experiment.devices import deal, devices_of, exact, fitting, sharing
from morphfed.experiment.prepare import Prepared
from morphfed.experiment.resolve import Resolved, resolve
from morphfed.experiment.runner import Options, fingerprint, run_study
from morphfed.experiment.study import load_study
from morphfed.experiment.units import units_of
from morphfed.training.dataset import ImageSet
from morphfed.training.dataset import pool as pooled
from morphfed.training.resident import ResidentStore

META = torch.device("meta")
"""Holds shapes and no memory: stands for a GPU here."""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that the machine has so many."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    return pretend


def test_cuda_is_every_gpu_and_a_number_is_that_one(gpus: Callable[[int], None]) -> None:
    gpus(3)
    assert devices_of("cuda") == ("cuda:0", "cuda:1", "cuda:2")
    assert devices_of("cuda:1") == ("cuda:1",)
    assert devices_of("cpu") == ("cpu",)
    assert devices_of("cuda", 1) == ("cuda:0",)
    assert (exact("cuda"), exact("cuda:2"), exact("cpu")) == tuple(map(torch.device, ("cuda:0", "cuda:2", "cpu")))


def test_processes_are_dealt_out_in_turn() -> None:
    two = ("cuda:0", "cuda:1")
    assert deal(two, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert [sharing(two, n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("asked", "need", "free", "found"),
    [(4, 10, 100, 4), (4, 13, 100, 3), (4, 25, 100, 2), (4, 60, 100, 1), (4, 500, 100, 1), (1, 1, 100, 1)],
)
def test_as_many_processes_as_half_of_the_memory_holds(asked: int, need: int, free: int, found: int) -> None:
    assert fitting(asked, need=need, free=free) == found


def test_one_unit_a_gpu_unless_more_are_asked_for(
    tiny: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphfed.experiment.resolve.available_cores", lambda: 8)

    def settled(*overrides: str) -> tuple[str, int, int]:
        keys = ["compute.device=auto", "compute.jobs=0", "compute.threads=0", "seeds=[0,1,2]", *overrides]
        found = resolve(*load_study(tiny, keys), tiny.parent)
        return found.study.compute.device, found.jobs, found.threads

    gpus(2)
    assert settled() == ("cuda", 2, 4)
    assert settled("compute.device=cuda:1") == ("cuda:1", 1, 8)
    assert settled("compute.jobs=4") == ("cuda", 4, 2)
    gpus(0)
    assert settled() == ("cpu", 3, 1)


def test_a_worker_takes_the_device_that_was_dealt_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    dealt = context.SimpleQueue()
    for device in deal(("cuda:0", "cuda:1"), 2):
        dealt.put(device)
    chosen: list[str] = []
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(pool.threading, "Thread", lambda **_: type("Silent", (), {"start": lambda self: None})())
    monkeypatch.setattr(pool, "_events", None)
    monkeypatch.setattr(pool, "_place", ("cpu", 1))
    for expected in (("cuda:0", 2), ("cuda:1", 2)):
        pool._start_worker(context.Queue(), dealt, 2, threads, 0)
        assert pool._place == expected
    assert chosen == ["cuda:0", "cuda:1"]


def test_fewer_processes_where_the_memory_is_short_and_it_is_said(
    tiny: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    resolved = resolve(*load_study(tiny, ["compute.device=cuda", "compute.jobs=6"]), tiny.parent)
    monkeypatch.setattr(runner, "need_of", lambda _: int(4e9))
    free = {"cuda:0": int(24e9), "cuda:1": int(17e9)}
    monkeypatch.setattr("morphfed.training.resident.free_bytes", lambda device: free[str(device)])
    said: list[Event] = []
    assert runner._fitting(resolved, 6, said.append) == 4  # half of 17 GB holds two of 4 GB, on each of two
    assert said[0].level == "warning"
    assert "4 units at once in place of 6: each needs 4.0 GB" in said[0].text
    assert runner._fitting(resolved, 2, said.append) == 2  # one a GPU needs no measurement
    assert len(said) == 1


def _prepared(*, n: int = 6) -> Prepared:
    data = make_set(n, 0)

    def part(where: slice) -> ImageSet:
        cut = {key: getattr(data, key)[where] for key in ("rows", "labels", "ids", "clusters")}
        return replace(data, **cut)

    sets = {"a": {"train": part(slice(0, 3)), "validation": part(slice(3, 3)), "test": part(slice(3, n))}}
    return Prepared(sets, {}, {}, [], [], {"a": (part(slice(0, 1)), np.array(["platelet"]))})


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.setattr(residence, "_kept", residence._Kept())
    return []


def test_images_that_fit_are_brought_once_and_found_again(monkeypatch: pytest.MonkeyPatch, said: list[Event]) -> None:
    monkeypatch.setattr(residence, "free_bytes", lambda _: 2 * 6 * 8 * 8 * 3)
    prepared = _prepared()
    brought, where = residence.bring(prepared, META, report=said.append)
    assert where == "device"
    store = brought.sets["a"]["train"].store
    assert isinstance(store, ResidentStore)
    assert store.values.shape == (6, 8, 8, 3)
    assert {id(data.store) for data in residence._every(brought)} == {id(store)}
    assert brought.unknown["a"][1].tolist() == ["platelet"]
    assert len(pooled(list(brought.sets["a"].values()))) == 6
    again, _ = residence.bring(prepared, META, report=said.append)
    assert again.sets["a"]["test"].store is store
    assert [event.text for event in said] == ["6 images (0 MB of 0 MB free) stay on meta"]
    other, _ = residence.bring(_prepared(), META, report=said.append)  # another store takes the place
    assert other.sets["a"]["train"].store is not store
    assert len(said) == 2


def test_images_that_do_not_fit_stay_on_the_host_and_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, said: list[Event]
) -> None:
    monkeypatch.setattr(residence, "free_bytes", lambda _: 4_000_000_000)
    monkeypatch.setattr(residence, "bytes_of", lambda *_: 1_100_000_000)
    prepared = _prepared()
    found, where = residence.bring(prepared, META, processes=2, report=said.append)
    assert (found, where) == (prepared, "host")
    assert said[0].text == (
        "6 images do not fit on meta: 1.1 GB needed, 1.0 GB are allowed of 4.0 GB free, shared by 2 processes; each "
        "batch is copied from pinned host memory"
    )


def test_memory_that_another_process_took_first_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, said: list[Event]
) -> None:
    def full(*_: object) -> ResidentStore:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(residence, "free_bytes", lambda _: 4_000_000_000)
    monkeypatch.setattr(residence, "ResidentStore", full)
    _, where = residence.bring(_prepared(), META, report=said.append)
    assert where == "host"
    assert "found no memory on meta after all" in said[0].text


def test_a_unit_without_memory_fails_alone_and_names_the_card(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("morphfed.experiment.train_unit.train_unit", full)
    monkeypatch.setattr(pool, "_prepared", lambda *_: _prepared())
    resolved = resolve(*load_study(tiny), tiny.parent)
    unit = units_of(resolved.study, resolved.arms)[0]
    job = pool.Job(
        unit, replace(resolved, study=resolved.study.model_copy(update={"held_out": ()})), tiny, tiny, tiny, ""
    )
    why = pool._attempt(job, "cuda:1", 2, lambda _: None)
    assert (
        why == "cuda:1 has too little memory. Fix: lower train.batch_size or compute.jobs, and run the command again."
    )


def test_on_a_cpu_nothing_is_brought(said: list[Event]) -> None:
    prepared = _prepared()
    assert residence.bring(prepared, torch.device("cpu"), report=said.append) == (prepared, "host")
    assert not said


def _resolved(tiny: Path, *overrides: str) -> Resolved:
    arms = "arms={fedavg={}, fedprox={mu=0.1}, small={algorithm='fedavg', train={batch_size=4}}}"
    return resolve(*load_study(tiny, [arms, *overrides]), tiny.parent)


def _decide(resolved: Resolved, known: dict[str, bool], said: list[Event]) -> frozenset[str]:
    units = units_of(resolved.study, resolved.arms)
    counts = dict.fromkeys(resolved.study.sites, 16)
    return compiling.decide(resolved, units, counts, known, report=said.append).compiled


def test_on_a_cpu_nothing_is_compiled_unless_asked_for(
    tiny: Path, said: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphfed.training.compiling.refuse_without_compiler", lambda device: said.append(device))
    assert _decide(_resolved(tiny), {}, said) == frozenset()
    assert _decide(_resolved(tiny, "compute.compile=off"), {}, said) == frozenset()
    assert said == []
    assert _decide(_resolved(tiny, "compute.compile=on"), {}, said) == {"fedavg", "fedprox", "small"}
    assert said == [torch.device("cpu")]  # tried out before any training
    # What an earlier call decided stands, and then nothing has to be tried.
    known = {"fedavg": True, "fedprox": False, "small": False}
    assert _decide(_resolved(tiny, "compute.compile=on"), known, said) == {"fedavg"}
    assert _decide(_resolved(tiny, "compute.compile=off"), known, said) == {"fedavg"}
    assert len(said) == 1


def test_on_a_gpu_it_is_measured_once_for_arms_of_the_same_steps(
    tiny: Path, said: list[Event], gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setattr(Resolved, "network", lambda *_: None)
    asked: list[tuple[int, float]] = []

    def step(network: None, **how: object) -> float:
        return 10.0

    def measure(network: None, *, plain: float, **how: int) -> tuple[float, float]:
        asked.append((how["batch_size"], plain))
        return (6.0 if how["batch_size"] == 8 else 10.5), 20.0

    monkeypatch.setattr("morphfed.training.precision.step_seconds", step)
    monkeypatch.setattr("morphfed.training.compiling.measure", measure)
    # 2 sites × 2 batches × 3 rounds × 2 arms = 24 steps that win 4 s each, against two times 20 s.
    assert _decide(_resolved(tiny, "compute.device=cuda"), {}, said) == {"fedavg", "fedprox"}
    assert asked == [(8, 10.0), (4, 10.0)]
    assert said[0].text.startswith("fedavg, fedprox: 24 steps of 10000.0 ms, 6000.0 ms compiled")
    assert said[1].text.endswith("not compiled")


def test_short_studies_and_machines_that_cannot_compile_stay_plain(
    tiny: Path, said: list[Event], gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setattr(Resolved, "network", lambda *_: None)

    def cannot(network: None, **how: object) -> tuple[float, float]:
        raise RuntimeError("Cannot find a working triton installation")

    monkeypatch.setattr("morphfed.training.compiling.measure", cannot)
    for seconds, why in ((0.1, "too few to compile for"), (10.0, "Cannot find a working triton")):
        said.clear()
        monkeypatch.setattr("morphfed.training.precision.step_seconds", lambda *_, s=seconds, **__: s)
        assert _decide(_resolved(tiny, "compute.device=cuda"), {}, said) == frozenset()
        assert all(why in event.text for event in said)
        assert len(said) == 2


def test_only_what_is_compiled_is_another_training(tiny: Path) -> None:
    plain = _resolved(tiny)
    some = replace(plain, compiled=frozenset({"small"}))
    for unit in units_of(plain.study, plain.arms):
        assert (fingerprint(plain, unit) == fingerprint(some, unit)) is (unit.arm != "small")
    assert "compile" not in plain.as_dict()["compute"]
    assert some.as_dict()["compute"]["compile"] == ["small"]


def test_a_run_keeps_to_what_it_compiled_and_says_where_it_trained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: called.append(type(model).__name__) or model)
    options = Options(tiny.parent / "runs", overrides=["compute.compile=on", "federation.rounds=1"])
    first = run_study(tiny, options)
    unit = read_json(first.run / "units/fedavg/all/seed-0/unit.json")
    assert (unit["device"], unit["images_on"], unit["compiled"]) == ("cpu", "host", True)
    assert "ResNet" in called
    saved = read_json(first.run / "config.json")
    assert saved["compiling"] == {"fedavg": True}
    assert saved["resolved"]["compute"]["compile"] == ["fedavg"]
    again = run_study(tiny, replace(options, overrides=["federation.rounds=1"]))
    assert read_json(again.run / "config.json")["resolved"] == saved["resolved"]
    assert read_json(again.results)["arms"][0]["device"] == "cpu"
