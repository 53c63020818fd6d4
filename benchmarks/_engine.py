"""The one place where the benchmarks touch the engine: federations without images, of any size and number of sites."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from morphfed.algorithms.base import Answer, SiteHalf, SiteWork
from morphfed.algorithms.mean import Averaging
from morphfed.core.types import Failure, Spec, Tensors, Upload
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.loop import FederationConfig, Outcome, RoundLoop
from morphfed.federation.site import UPLOAD_METRICS, VALIDATION_METRICS, Site, Workspace
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.layout import Layout
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.trainer import FitReport, Trainer

CLASSES = 8


def small_model() -> nn.Module:
    """Ten values."""
    return nn.Linear(9, 1)


def large_model() -> nn.Module:
    """The state of a ResNet-34: 21.3 million values, 85 MB; zeros, because nothing is computed with it."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("resnet34", num_classes=CLASSES)
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


def travelling(model: nn.Module) -> Tensors:
    """What goes to and fro: the floating-point state."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


class Returning(SiteHalf):
    """Trains nothing: the upload is the network as the download filled it."""

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """Give the download back."""
        return Answer(work.current(), FitReport(0.0, 0, 0))


class _NoPictures:
    def gather(self, rows: np.ndarray) -> np.ndarray:
        raise RuntimeError("nothing is trained, so nothing may be read")


def _images(n: int) -> ImageSet:
    ids = np.array([str(i) for i in range(n)], dtype=object)
    return ImageSet(_NoPictures(), np.arange(n), np.zeros(n, dtype=np.int64), CLASSES, ids, ids)


def idle_federation(model: nn.Module, *, rounds: int, folder: Path, checkpoints: bool) -> Outcome:
    """Two sites with nothing to train: all of the engine but training, validation and, if so wanted, checkpoints."""
    workspace = Workspace.of(model, Layout.of(model))
    mean = (0.5, 0.5, 0.5)
    config = TrainConfig(precision="fp32")
    trainer = Trainer(config, mean=mean, std=mean, device=torch.device("cpu"), seed=0)
    state = model.state_dict()
    specs = {name: Spec.of(state[name]) for name in workspace.travels}
    declared = Declaration(specs, UPLOAD_METRICS, "benchmark", VALIDATION_METRICS)

    def nothing(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        raise RuntimeError("there are no validation images")

    sites = [
        Site(
            name,
            train=_images(n),
            validation={},
            trainer=trainer,
            workspace=workspace,
            half=Returning(),
            gate=EgressGate(name, declared, folder / "ledger.jsonl"),
            measure=nothing,
            keep_optimizer=False,
        )
        for name, n in {"a": 30, "b": 10}.items()
    ]
    loop = RoundLoop(
        FederationConfig(rounds=rounds),
        coordinator=Averaging({name: state[name] for name in workspace.travels}, weighting="images"),
        transport=InProcess(sites),
        store=CheckpointStore(folder, "benchmark") if checkpoints else None,
    )
    return loop.run()


def one_epoch(trainer: Trainer, images: ImageSet) -> int:
    """Draw an epoch's batches as training does; the number of images seen."""
    return sum(len(piece.targets) for pieces in trainer._batches(images, "site", 1, 1) for piece in pieces)


class Generated:
    """A transport whose sites are made up one at a time: site k uploads a model full of k.

    Args:
        sites: number of sites.
        initial: names and shapes; one buffer of that size is used for every upload.
    """

    def __init__(self, sites: int, initial: Tensors) -> None:
        self._sites = tuple(f"site{k:04d}" for k in range(1, sites + 1))
        self._buffer = {name: torch.empty_like(tensor) for name, tensor in initial.items()}
        self.generating = 0.0

    @property
    def sites(self) -> Sequence[str]:
        return self._sites

    def train(self, round_number: int, rounds: int, downloads: Mapping[str, Tensors]) -> Iterator[Upload | Failure]:
        for k, site in enumerate(downloads, 1):
            start = time.perf_counter()
            torch._foreach_zero_(list(self._buffer.values()))
            torch._foreach_add_(list(self._buffer.values()), float(k))
            self.generating += time.perf_counter() - start
            yield Upload(site, round_number, self._buffer, 1.0, {"loss": 0.0, "steps": 0.0, "images": 0.0})

    def evaluate(self, round_number: int, downloads: Mapping[str, Tensors]) -> dict[str, dict[str, float]]:
        return {}

    def site_states(self) -> dict[str, Tensors]:
        return {}

    def load_site_states(self, states: Mapping[str, Tensors]) -> None:
        raise RuntimeError("these sites have no state")


def round_of_many(transport: Generated, initial: Tensors) -> Tensors:
    """One round of the mean over all generated sites; the global model after it."""
    loop = RoundLoop(
        FederationConfig(rounds=1),
        coordinator=Averaging(initial, weighting="uniform"),
        transport=transport,
        store=None,
    )
    return loop.run().last
