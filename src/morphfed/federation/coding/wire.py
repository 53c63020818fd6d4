"""What of an upload is coded, against what, and what becomes of the error.

* The trained weights that travel are sent as *changes*: what the site trained less what it downloaded in this round.
  The coordinator adds the change to the weights that it handed out, so an algorithm folds in ordinary weights.
* What an algorithm sends beside them and calls a change itself (``Algorithm.changes``) is coded as it is.
* Everything else goes exactly as it is: running statistics, integers, and any other tensor of an algorithm. So does a
  tensor that a code would not make smaller. With ``fp32`` that is all of them.

Error feedback (Seide, Fu, Droppo, Li, Yu: 1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs, Interspeech 2014, equations 2 and 3; Karimireddy, Rebjock, Stich, Jaggi: Error
feedback fixes SignSGD and other gradient compression schemes, ICML 2019, algorithm EF-SGD), for a site's change Δ_t:

``p_t = Δ_t + e_t``,  sent: ``C(p_t)``,  ``e_{t+1} = p_t - C(p_t)``,  ``e_1 = 0``.

So ``Σ_t C(p_t) + e_{T+1} = Σ_t Δ_t``: nothing is lost, it comes later. The residual e is private to the site.

A download in bfloat16 rounds what the sites start from; the coordinator keeps its own float32 weights and adds the
changes to those (the master copy of Micikevicius et al., Mixed precision training, ICLR 2018, section 3.1). Were the
mean taken of rounded weights, changes below half a step of bfloat16 would be lost in every round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from morphfed.core.errors import TrainingError
from morphfed.core.seeding import derive
from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec, UploadConfig

Download = Literal["fp32", "bf16"]
"""How the trained weights are written for the way down."""

_CODED = "float32"
"""What is coded; a network in another precision has chosen it."""


@dataclass(frozen=True)
class _Wire:
    """How one tensor of an upload is written.

    Attributes:
        spec: the tensor's own.
        codec: None: its numbers as they are.
        change: less the download.
    """

    spec: Spec
    codec: Codec | None
    change: bool

    def names(self, name: str) -> dict[str, Spec]:
        """Of the tensors that are sent for it."""
        if self.codec is None:
            return {name: self.spec}
        return {f"{name}#{part}": spec for part, spec in self.codec.parts(self.spec).items()}


class Coding:
    """Both ends of a connection: a site encodes uploads and opens downloads, the coordinator does the reverse.

    Args:
        upload: the study's.
        download: the study's.
        specs: what an upload of the algorithm holds, uncoded.
        weights: those of them that are trained weights and travel both ways.
        changes: those of them that are changes already.
        seed: of stochastic rounding.
    """

    def __init__(
        self,
        upload: UploadConfig,
        download: Download,
        *,
        specs: Mapping[str, Spec],
        weights: Collection[str],
        changes: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        codec = CODECS[upload.code](upload)
        self._feedback, self._seed = upload.error_feedback, seed
        self._shortened = {n: specs[n] for n in specs if download != "fp32" and n in weights and _codable(specs[n])}
        self._wires: dict[str, _Wire] = {}
        for name, spec in specs.items():
            may = (name in weights or name in changes) and _codable(spec)
            short = may and sum(part.nbytes for part in codec.parts(spec).values()) < spec.nbytes
            change = name in weights and (short or name in self._shortened)
            self._wires[name] = _Wire(spec, codec if short else None, change)
        self.specs: dict[str, Spec] = {k: s for name, wire in self._wires.items() for k, s in wire.names(name).items()}
        """What travels up: name → shape and dtype."""

    @classmethod
    def none(cls, specs: Mapping[str, Spec]) -> Coding:
        """Everything as it is."""
        return cls(UploadConfig(), "fp32", specs=specs, weights=())

    @property
    def plain(self) -> bool:
        """Whether uploads go as they are."""
        return not any(wire.codec or wire.change for wire in self._wires.values())

    @property
    def nbytes(self) -> int:
        """Bytes of an upload's tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    @torch.no_grad()
    def encode(
        self, tensors: Tensors, download: Tensors, residual: Tensors, *, site: str, round_number: int
    ) -> tuple[Tensors, Tensors]:
        """What a site sends, and what is left for its next upload.

        Args:
            tensors: the algorithm's upload. What is not declared is passed on as it is, for the gate to refuse.
            download: of this round, as the site opened it.
            residual: e_t by name; empty before the first round.
            site, round_number: name the draws.

        Returns:
            Coded tensors (those that are not coded are the same objects), and e_{t+1}.

        Raises:
            TrainingError: a change that is not finite; ``residual`` is as it was.
        """
        coded: Tensors = {}
        left: Tensors = {}
        for name, tensor in tensors.items():
            wire = self._wires.get(name)
            if wire is None or not (wire.codec or wire.change) or Spec.of(tensor) != wire.spec:
                coded[name] = tensor
                continue
            change = tensor - download[name] if wire.change else tensor
            if name in residual and wire.codec and self._feedback:
                change = change + residual[name].to(change.device)
            if not bool(change.isfinite().all()):
                raise TrainingError(
                    f"Site '{site}', round {round_number}: the change of '{name}' is not finite; nothing was sent.",
                    fix="lower train.lr, or set train.clip = 1.0.",
                )
            if wire.codec is None:
                coded[name] = change
                continue
            parts = wire.codec.encode(change, derive(self._seed, "upload", site, round_number, name))
            coded |= {f"{name}#{part}": t for part, t in parts.items()}
            if self._feedback:
                left[name] = change - wire.codec.decode(parts, wire.spec)
        return coded, left

    @torch.no_grad()
    def decode(self, coded: Tensors, download: Tensors) -> Tensors:
        """An algorithm's upload.

        Args:
            coded: of exactly the names, shapes and dtypes of :attr:`specs`; the values may be anything.
            download: what the coordinator handed to this site, in full precision.

        Raises:
            ValueError: values that no site writes; names the tensor.
        """
        if self.plain:
            return coded
        tensors: Tensors = {}
        for name, wire in self._wires.items():
            value = coded[name] if wire.codec is None else self._read(name, wire, wire.codec, coded)
            tensors[name] = download[name] + value if wire.change else value
        return tensors

    @staticmethod
    def _read(name: str, wire: _Wire, codec: Codec, coded: Tensors) -> torch.Tensor:
        try:
            return codec.decode({part: coded[f"{name}#{part}"] for part in codec.parts(wire.spec)}, wire.spec)
        except ValueError as cause:
            raise ValueError(f"'{name}': {cause}") from cause

    @torch.no_grad()
    def send(self, downloads: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Downloads by site as they travel; what several sites share is rounded once."""
        if not self._shortened:
            return dict(downloads)
        made: dict[int, torch.Tensor] = {}

        def short(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if name not in self._shortened:
                return tensor
            if id(tensor) not in made:
                made[id(tensor)] = tensor.to(torch.bfloat16)
            return made[id(tensor)]

        return {site: {name: short(name, t) for name, t in tensors.items()} for site, tensors in downloads.items()}

    def open(self, download: Tensors) -> Tensors:
        """A download as a site uses it: in the dtypes of its network; one that was not rounded is the same object."""
        if not self._shortened:
            return download
        dtypes = {name: getattr(torch, spec.dtype) for name, spec in self._shortened.items()}
        return {name: t.to(dtypes[name]) if name in dtypes else t for name, t in download.items()}


def _codable(spec: Spec) -> bool:
    return spec.dtype == _CODED
