"""A federation small enough for a test: three sites, coloured squares, a two-layer network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS
from morphfed.core.types import Spec
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.coding.base import UploadConfig
from morphfed.federation.coding.wire import Coding, Download
from morphfed.federation.loop import FederationConfig, RoundLoop
from morphfed.federation.secure.member import Member, Opened
from morphfed.federation.secure.plan import Plan
from morphfed.federation.secure.rows import SummedRows
from morphfed.federation.secure.total import SecureSums
from morphfed.federation.site import BEFORE_METRICS, UPLOAD_METRICS, VALIDATION_METRICS, Site, Workspace
from morphfed.federation.statistics import class_counts, temperature_losses
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.layout import Layout
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.privacy.noise import Noise, NoiseConfig
from morphfed.privacy.secure.config import SecureConfig
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet, MaskSet
from morphfed.training.trainer import Trainer

SIZE = 8


class Pictures:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def make_set(n: int, seed: int) -> ImageSet:
    """Two classes: reddish and bluish squares."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pixels = rng.integers(0, 120, (n, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[labels == 0, ..., 0] += 100
    pixels[labels == 1, ..., 2] += 100
    ids = np.array([f"{seed}/{i}" for i in range(n)], dtype=object)
    return ImageSet(Pictures(pixels), np.arange(n), labels.astype(np.int64), 2, ids, ids)


def make_mask_set(n: int, seed: int) -> MaskSet:
    """Bright squares on a dark ground, and the masks that show them."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, SIZE, SIZE), dtype=np.uint8)
    for mask, (y, x) in zip(masks, rng.integers(0, SIZE - 3, (n, 2)), strict=True):
        mask[y : y + 3, x : x + 3] = 1
    pixels = rng.integers(0, 100, (n, SIZE, SIZE, 3), dtype=np.uint8) + 120 * masks[..., None]
    ids = np.array([f"{seed}/{i}" for i in range(n)], dtype=object)
    rows, known = np.arange(n), {"present": np.ones((n, 1), dtype=np.bool_), "um_per_px": np.full(n, 0.1)}
    # Masks lie in another order than their pictures, as they may in a cache.
    return MaskSet(Pictures(pixels), rows, rows[::-1].copy(), 2, ids, ids, masks=Pictures(masks[::-1]), **known)


def make_model(*, batch_norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        norm,
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


TRAIN = {"precision": "fp32", "batch_size": 4, "lr": 0.01, "channels_last": False}


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    right = float((probabilities.argmax(1) == labels).mean())
    return {"balanced_accuracy": right, "macro_f1": right}


class Federation:
    """Everything a test may want to touch."""

    def __init__(
        self,
        folder: Path | None,
        *,
        sizes: dict[str, int] | None = None,
        algorithm: str = "fedavg",
        keys: dict[str, object] | None = None,
        rounds: int = 3,
        train: dict[str, object] | None = None,
        norm: str = "batch",
        head: tuple[str, ...] = ("6.weight", "6.bias"),
        quorum: float = 0.5,
        keep_optimizer: bool = False,
        seed: int = 0,
        calibrate: bool = False,
        retrogress: bool = False,
        model: nn.Module | None = None,
        upload: dict[str, object] | None = None,
        download: Download = "fp32",
        noise: dict[str, object] | None = None,
        secure: dict[str, object] | None = None,
        opened: Path | None = None,
    ) -> None:
        sizes = sizes or {"kampala": 12, "lagos": 8, "quito": 6}
        self.model = model or make_model(batch_norm=norm != "none")
        named = ALGORITHMS[algorithm]
        config = named.config(**(keys or {}))
        self.layout = Layout.of(self.model, head=head)
        going = named.travels(config, self.layout)
        if norm == "local":
            going = tuple(name for name in going if name not in self.layout.norms)
        self.workspace = Workspace.of(self.model, self.layout, going)
        settings = TrainConfig(**{**TRAIN, **(train or {})})
        trainer = Trainer(settings, mean=(0.5,) * 3, std=(0.25,) * 3, device=torch.device("cpu"), seed=seed)
        state = self.model.state_dict()
        uploads = named.uploads(config, self.layout, {k: Spec.of(state[k]) for k in self.workspace.travels})
        shared = settings.loss.prior == "federation" or named.counts(config)
        statistics = (class_counts(2) if shared else {}) | (temperature_losses() if calibrate else {})
        numbers = UPLOAD_METRICS | named.numbers | (BEFORE_METRICS if retrogress else frozenset())
        self.coding = Coding(
            UploadConfig.model_validate(upload or {}),
            download,
            specs=uploads,
            weights=self.layout.parameters.intersection(going),
            changes=named.changes(uploads),
            seed=seed,
        )
        noising = NoiseConfig.model_validate(noise or {})
        weights = self.layout.parameters.intersection(going)
        self.noise = (
            Noise(noising, weights=weights, changes=named.changes(uploads), seed=seed)
            if noising.kind != "none"
            else None
        )
        securing = SecureConfig.model_validate({"on": True, **secure} if secure is not None else {})
        weighting = named.sums(config).weighting
        self.plan = None
        if securing.on and weighting is not None:
            trained = weights | named.changes(uploads)
            relative = frozenset(uploads) & frozenset(going)
            self.plan = Plan("unit", tuple(sizes), securing, weighting, uploads, relative, trained, "test")
        masked = self.plan.declared if self.plan else None
        declaration = Declaration(self.coding.specs, numbers, "test", VALIDATION_METRICS, statistics, masked=masked)
        self.gates = {
            name: EgressGate(name, declaration, folder / f"{name}.jsonl" if folder else None) for name in sizes
        }
        self.members = {
            name: Member(name, self.plan, gate, opened=Opened(opened and opened / f"{name}.json"))
            for name, gate in self.gates.items()
            if self.plan
        }
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self.sites = [
            Site(
                name,
                train=make_set(n, i),
                validation={name: make_set(10, 100 + i)},
                trainer=trainer,
                workspace=self.workspace,
                half=named.site(config),
                gate=self.gates[name],
                measure=accuracy,
                keep_optimizer=keep_optimizer,
                coding=self.coding,
                judges_own=retrogress,
                noise=self.noise,
                member=self.members.get(name),
            )
            for i, (name, n) in enumerate(sizes.items())
        ]
        self.coordinator = named.coordinator(config, {k: state[k].clone() for k in going}, self.layout)
        self.transport = InProcess(self.sites)
        sums = SecureSums(self.plan) if self.plan else None
        self.asked = SummedRows(self.transport, sums, classes=2, quorum=quorum) if sums else self.transport
        self.store = CheckpointStore(folder, "study") if folder else None
        self.loop = RoundLoop(
            FederationConfig(rounds=rounds, quorum=quorum, noise=noising, secure=securing.model_dump()),
            coordinator=self.coordinator,
            transport=self.asked,
            store=self.store,
            coding=self.coding,
            share_counts=shared,
            noise=self.noise,
            secure=sums,
            seed=seed,
        )
