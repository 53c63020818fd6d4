"""PFA: sites share the low frequencies of their weights, more of them from round to round, and keep the high ones.

Chen, Zhu, Yang, Liu, Yuan, Guo, Li, Yuan: Personalized retrogress-resilient framework for real-world medical federated
learning. MICCAI 2021. Chen, Yang, Zhu, Liu, Yuan: Personalized retrogress-resilient federated learning toward
imbalanced medical data. IEEE TMI 2022. Progressive Fourier aggregation: with ``F_k`` the transform of site k's weights,
read as a matrix, and ``B_r`` the centred band of round r,

* 2021, ``phase = "private"``: in B_r the amplitudes become ``Σ_j |F_j| / K``, the phases stay the site's own;
* 2022, ``phase = "arithmetic"``: in B_r also the angles become their arithmetic mean; the classifier is transformed
  class by class;
* outside B_r everything stays the site's own, so each site gets a download of its own.

The band's share of a side is ``L_r = L_0 + (r / R)(L_1 - L_0)``, r = 0 … R-1: L_1 itself is never reached.

Both published rules bend the mean: amplitudes with foreign phases are no mean of weights, and angles near ±π average
to their opposite. ``phase = "complex"`` averages the coefficients themselves; with ``symmetric = true`` and L = 1 it is
FedAvg to the bit. ``circular`` is 2022's rule with directions in place of numbers. The published band holds -b … b-1;
the row and the column -b then take half of the change. ``symmetric`` holds -b … b.

Convolutions and linear layers are found by module type. All else that travels (biases, tokens) is plainly averaged.
Normalisation layers stay at their site, as published, unless ``norms = "travel"``. A site whose upload is missing keeps
the high frequencies of its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, CoordinatorHalf, Facts, Outlook
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.mean import RunningMean, Weighting
from morphfed.algorithms.prr.spectrum import Phase, plane, share_band, unfolded, weight_of
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

JOINT = 2**21
"""Tensors of one shape are transformed together up to so many values of a model."""

SITE = "site/"
"""Prefix of the sites' own models in the coordinator's state."""

NEWCOMER = (
    "the mean of the sites' uploads with the norms that training started from, "
    "their running statistics re-estimated on the newcomer's own unlabelled images"
)


class TravelConfig(AlgorithmConfig):
    """Keys of what travels and how sites count."""

    weighting: Weighting = Field("uniform", description="uniform: every site alike, as published; images: n_k / n")
    norms: Literal["stay", "travel"] = Field(
        "stay", description="normalisation layers. stay: each site keeps its own, as published; travel: averaged"
    )


class PfaConfig(TravelConfig):
    """Keys of PFA."""

    phase: Phase = Field(
        "complex",
        description="what is averaged in the band. private: amplitudes (MICCAI 2021); arithmetic: amplitudes and "
        "angles (TMI 2022); circular: amplitudes and directions; complex: the coefficients",
    )
    symmetric: bool = Field(True, description="band -b … b; false: -b … b-1 as published")
    l_start: float = Field(0.7, ge=0, le=1, description="L_0, share of a side's frequencies in the first round")
    l_end: float = Field(
        0.95, ge=0, le=1, description="L_1, to which the share rises; 1 and l_start = 1: all is shared"
    )
    classifier: Literal["rows", "matrix"] = Field(
        "rows", description="rows: each class's weights by themselves (TMI 2022); matrix: as any layer (MICCAI 2021)"
    )


def travels(config: AlgorithmConfig, layout: Layout) -> tuple[str, ...]:
    """All that is trained, less the normalisation layers where they stay."""
    return layout.without(layout.norms) if cast("TravelConfig", config).norms == "stay" else layout.order


def share_of_sides(start: float, end: float, round_number: int, rounds: int) -> float:
    """L of a round, from 1."""
    return start + (round_number - 1) / rounds * (end - start)


class Pfa(CoordinatorHalf):
    """Mixes the sites' models frequency by frequency.

    It holds a model for each site, whose high frequencies nobody else has, and the mean. Layers are mixed one at a
    time: with ``phase = "complex"`` one site's spectrum of it is held beside them, else those of all sites. Sums of
    spectra over arriving uploads would save nothing.

    Args:
        initial: the travelling tensors before round 1, alike for all sites.
        layout: tells convolutions and linear layers, and the classifier.
        config: the rule.
    """

    def __init__(self, initial: Tensors, layout: Layout, config: PfaConfig) -> None:
        self._config = config
        self._model = {name: tensor.clone() for name, tensor in initial.items()}
        self._matrices = [name for name in initial if name in layout.matrices]
        self._rows = layout.head if config.classifier == "rows" else frozenset[str]()
        self._sites: dict[str, Tensors] = {}
        self._rounds = self._round = 0
        self._weights: dict[str, float] = {}
        self._before: Tensors = {}
        self._mean = RunningMean()

    def plan(self, outlook: Outlook) -> None:
        """R, over which the band grows."""
        self._rounds = outlook.rounds

    def download(self, site: str) -> Tensors:
        """The shared band and the site's own high frequencies; before its first upload the initial model."""
        return self._sites.get(site, self._model)

    def own(self, site: str) -> Tensors:
        """The site's download; before its first upload it has none of its own."""
        return self._sites.get(site, {})

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums; this round's take the memory of the mean before the last."""
        self._round, self._weights, self._mean = round_number, {}, RunningMean(self._before)

    @torch.no_grad()
    def fold(self, upload: Upload) -> None:
        """Keep a copy in place of the site's old model, and add it to the mean."""
        weight = upload.weight if self._config.weighting == "images" else 1.0
        self._weights[upload.site] = weight
        self._mean.add(upload.tensors, weight)
        kept = self._sites.get(upload.site)
        if kept is None:
            self._sites[upload.site] = {name: tensor.clone() for name, tensor in upload.tensors.items()}
        else:
            torch._foreach_copy_(list(kept.values()), [upload.tensors[name] for name in kept])

    @torch.no_grad()
    def end_round(self) -> None:
        """Give every site the shared band."""
        if self._mean.empty:
            return
        if not self._rounds:
            raise RuntimeError("plan() must tell the number of rounds first")
        self._before = {name: t for name, t in self._model.items() if t.device.type == "cpu"}
        self._model, self._mean = self._mean.result(), RunningMean()
        sites = sorted(self._sites)
        mixed = frozenset(self._matrices)
        for site in sites:
            plain = [name for name in self._model if name not in mixed]
            if plain:
                torch._foreach_copy_([self._sites[site][n] for n in plain], [self._model[n] for n in plain])
        total = sum(self._weights.values())
        shares = [self._weights.get(site, 0.0) / total for site in sites]
        for names in self._alike():
            self._mix(names, sites, shares)

    def _alike(self) -> Iterator[list[str]]:
        """Names of one kind and shape, few enough to be transformed together."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name in self._matrices:
            tensor = self._model[name]
            groups.setdefault((tensor.shape, tensor.dtype, name in self._rows), []).append(name)
        for names in groups.values():
            step = max(1, JOINT // self._model[names[0]].numel())
            yield from (names[start : start + step] for start in range(0, len(names), step))

    def _mix(self, names: Sequence[str], sites: Sequence[str], shares: Sequence[float]) -> None:
        config = self._config
        by_rows = names[0] in self._rows
        mixed = share_band(
            _Planes([self._sites[site] for site in sites], names, by_rows=by_rows),
            _Planes([self._model], names, by_rows=by_rows)[0],
            shares,
            ratio=share_of_sides(config.l_start, config.l_end, self._round, self._rounds),
            phase=config.phase,
            symmetric=config.symmetric,
            sides=1 if by_rows else 2,
        )
        for site, of_site in zip(sites, mixed, strict=True):
            for name, found in zip(names, of_site, strict=True):
                own = self._sites[site][name]
                own.copy_(found.reshape(own.shape) if by_rows else weight_of(found, own.shape))

    def model(self) -> Tensors:
        """The mean of the uploads: what a newcomer gets."""
        return self._model

    def state(self) -> Tensors:
        """The mean and each site's model."""
        own = {f"{SITE}{site}/{n}": t for site, tensors in sorted(self._sites.items()) for n, t in tensors.items()}
        return {**self._model, **own}

    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""
        devices = {name: old.device for name, old in self._model.items()}
        self._model = {name: tensors[name].to(device, copy=True) for name, device in devices.items()}
        self._sites = {}
        for key, tensor in tensors.items():
            if key.startswith(SITE):
                site, _, name = key.removeprefix(SITE).partition("/")
                self._sites.setdefault(site, {})[name] = tensor.to(devices[name], copy=True)


class _Planes(Sequence["Tensor"]):
    """The named tensors of each model as one stack ``(names, rows, columns)``, which lies where the one before lay.

    Args:
        models: of the same tensors.
        names: of tensors of one shape.
        by_rows: rows are what belongs to one output.
    """

    def __init__(self, models: Sequence[Tensors], names: Sequence[str], *, by_rows: bool) -> None:
        self._models, self._names, self._by_rows = models, names, by_rows
        first = models[0][names[0]]
        shape = first.flatten(1).shape if by_rows else plane(first).shape
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        self._stack = torch.empty((len(names), *shape), dtype=wide, device=first.device)

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, k: int) -> Tensor:  # type: ignore[override]  # no slices
        if not 0 <= k < len(self):
            raise IndexError(k)
        for name, found in zip(self._names, self._stack, strict=True):
            weight = self._models[k][name]
            shown = weight.flatten(1) if self._by_rows else unfolded(weight)
            found.view(shown.shape).copy_(shown)  # each value is copied once
        return self._stack


def pfa(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Pfa:
    """The coordinator half."""
    return Pfa(initial, layout, cast("PfaConfig", config))


ALGORITHMS.register("pfa")(
    Algorithm(
        name="pfa",
        title="progressive Fourier aggregation",
        paper="Chen et al., MICCAI 2021 and IEEE TMI 2022",
        equation="F_k ← (1 - B_r) F_k + B_r mean_j F_j,  F = FFT(w);  L_r = L_0 + (r / R)(L_1 - L_0) of a side",
        config=PfaConfig,
        site=lambda config: PlainSite(),
        coordinator=pfa,
        facts=Facts(
            travels="the model without its normalisation layers, both ways; each site's download is its own",
            stays="images, labels, optimiser state, normalisation: scale, shift, running statistics",
            memory="K + 2 models for K sites, and the spectra of one layer of all of them",
            cost="1 × local training; at the coordinator two Fourier transforms of each model",
        ),
        travels=travels,
        newcomer=lambda config: NEWCOMER,
    )
)
