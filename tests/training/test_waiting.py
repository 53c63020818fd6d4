"""Between two steps the host never asks the device for a value.

Three ways: every algorithm on the CPU under a mode that counts what reads a tensor's value; the step on pretended CUDA
tensors, which have no values at all, under a mode that sees every copy to the host; and, where there is a GPU, CUDA's
own check for calls that wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.federated import Federation, make_mask_set, make_set
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morphfed.tasks.base import Task
from morphfed.tasks.classification import CLASSIFICATION
from morphfed.tasks.segmentation import SEGMENTATION
from morphfed.training import feed, resident, transfer
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.optimise import make_optimizer
from morphfed.training.resident import ResidentStore
from morphfed.training.trainer import FitReport, Trainer


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2")


class Watching(TorchDispatchMode):
    """Counts operations, those that read values, and those whose result is on another device than what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.to_host: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        self.seen[name] += 1
        if name in ("index", "index_put_") and any(t.dtype == torch.bool for t in _tensors(args[1])):
            self.seen["nonzero"] += 1  # a mask is counted out within the kernel
        out = func(*args, **(kwargs or {}))
        came, went = ({t.device.type for t in _tensors(values)} for values in ((args, kwargs), out))
        if "cuda" in came and "cpu" in went:
            self.to_host.append(name)
        return out

    @property
    def reads(self) -> int:
        return sum(self.seen[name] for name in READS)


def test_the_mode_sees_what_it_is_there_for() -> None:
    with Watching() as watching:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
        torch.ones(3)[torch.tensor([True, False, True])]
    assert (watching.seen["_local_scalar_dense"], watching.seen["nonzero"]) == (2, 1)


@pytest.mark.parametrize(
    ("algorithm", "keys", "loss"),
    [
        ("fedavg", {}, "cross_entropy"),
        ("fedavg", {}, "focal"),
        ("fedprox", {"mu": 0.1}, "cross_entropy"),
        ("scaffold", {}, "cross_entropy"),
        ("moon", {"mu": 0.5}, "cross_entropy"),
        ("ditto", {}, "cross_entropy"),
        ("fedrep", {}, "cross_entropy"),
    ],
)
def test_a_fit_reads_one_number_whatever_the_algorithm(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, keys: dict[str, object], loss: str
) -> None:
    reads: list[tuple[int, int]] = []
    original = Trainer.fit

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> FitReport:
        with Watching() as watching:
            report = original(self, *args, **kwargs)
        reads.append((report.steps, watching.reads))
        return report

    monkeypatch.setattr(Trainer, "fit", watched)
    made = Federation(None, algorithm=algorithm, keys=keys, rounds=2, train={"loss": {"kind": loss}, "clip": 0.5})
    for site in made.sites:
        site._trainer._waits = False
        site._train = replace(
            site._train, store=ResidentStore(site._train.store, site._train.rows, torch.device("cpu"))
        )
    made.loop.run()
    assert min(steps for steps, _ in reads) > 1
    assert {found for _, found in reads} == {1}


@contextmanager
def _pretended() -> Iterator[Watching]:
    with FakeTensorMode(allow_non_fake_inputs=True), Watching() as watching:
        yield watching


def _gradients_out_of_nothing(model: nn.Module) -> Callable[[torch.Tensor], None]:
    """In place of autograd's engine, which needs a driver; it is C++ that never asks for a value."""

    def backward(objective: torch.Tensor) -> None:
        assert objective.requires_grad
        for p in model.parameters():
            p.grad = torch.empty_like(p)

    return backward


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
@pytest.mark.parametrize("on_device", [True, False], ids=["resident", "hosted"])
@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION], ids=["classes", "masks"])
def test_on_a_pretended_gpu_the_first_value_is_asked_for_after_the_last_step(
    monkeypatch: pytest.MonkeyPatch, task: Task, on_device: bool
) -> None:
    device = torch.device("cuda:0")
    data = make_mask_set(18, 0) if task is SEGMENTATION else make_set(18, 0)
    for module in (transfer, feed, resident):  # pinning needs a driver
        if hasattr(module, "pinned"):
            monkeypatch.setattr(module, "pinned", lambda tensor, _: tensor)

    @contextmanager
    def fork_rng(devices: Sequence[torch.device]) -> Iterator[None]:
        assert list(devices) == [device]
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with _pretended() as watching:
        with device:
            layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)
            ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)) if task is CLASSIFICATION else ()
            model = nn.Sequential(*layers, *(ends or [nn.Conv2d(4, 2, 1)]))
        stores = {name: ResidentStore(store, rows, device) for name, (store, rows) in data.stored().items()}
        images = replace(data, **stores) if on_device else data
        monkeypatch.setattr(torch.autograd, "backward", _gradients_out_of_nothing(model))
        config = TrainConfig(precision="bf16", batch_size=4, local_epochs=2)
        trainer = Trainer(config, mean=(0.5,) * 3, std=(0.25,) * 3, device=device, seed=0, task=task)
        # A pretended tensor has no value: what asks for one ends here.
        with pytest.raises(DataDependentOutputException):
            trainer.fit(model, make_optimizer(config, model), images, site="a", round_number=1, rounds=1)
    steps, groups = 2 * 5, 2
    assert watching.seen["_fused_adamw_"] == steps * groups
    assert watching.seen["cudnn_batch_norm"] + watching.seen["native_batch_norm"] == steps
    assert watching.to_host == []
    assert watching.reads == 1
    gathers = watching.seen["index_select"]
    assert gathers == (steps * len(data.stored()) if on_device else 0)


def test_an_upload_of_many_tensors_is_checked_with_one_read() -> None:
    from morphfed.federation.validate import first_not_finite

    with _pretended() as watching:
        with torch.device("cuda:0"):
            tensors = {str(i): torch.ones(3) for i in range(40)}
        with pytest.raises(DataDependentOutputException):
            first_not_finite(tensors)
    assert watching.seen["sum"] == 40  # all of them, before the first value is asked for
    assert watching.to_host == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_device", [True, False], ids=["resident", "hosted"])
@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION], ids=["classes", "masks"])
def test_cuda_itself_sees_no_call_that_waits(monkeypatch: pytest.MonkeyPatch, task: Task, on_device: bool) -> None:
    device = torch.device("cuda:0")
    data: ImageSet = make_mask_set(64, 0) if task is SEGMENTATION else make_set(64, 0)
    stores = {name: ResidentStore(store, rows, device) for name, (store, rows) in data.stored().items()}
    images = replace(data, **stores) if on_device else data
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)) if task is CLASSIFICATION else ()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), *(ends or [nn.Conv2d(4, 2, 1)])).to(device)
    config = TrainConfig(precision="bf16", batch_size=8)
    trainer = Trainer(config, mean=(0.5,) * 3, std=(0.25,) * 3, device=device, seed=0, task=task)
    optimizer = make_optimizer(config, model)
    trainer.fit(model, optimizer, images, site="a", round_number=1, rounds=2)  # libraries set themselves up
    before = {k: v.clone() for k, v in model.state_dict().items()}
    original = trainer._batches

    def strict(*args: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from original(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer, "_batches", strict)
    report = trainer.fit(model, optimizer, images, site="a", round_number=2, rounds=2)
    assert np.isfinite(report.loss)
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
