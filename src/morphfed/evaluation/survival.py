"""What a model said of how long patients live, kept as Parquet, judged by Harrell's c-index and by risk groups."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import DataError, StorageError
from morphfed.core.files import writing
from morphfed.evaluation.bootstrap import RESAMPLES, cluster_codes, interval, replicate
from morphfed.evaluation.metrics import Floats
from morphfed.evaluation.predictions import ClusterUnit, difference
from morphfed.evaluation.scores import Scores
from morphfed.evaluation.site import Role

METRICS = ("c_index",)

FEW_EVENTS = 10
"""Fewer events in a test part are pointed out."""

GROUPS = ("lower risk", "higher risk")

_METADATA = b"morphfed.outcomes"
_SURVIVAL = "survival/"
_ROWS = 512  # events whose pairs are looked at together


def c_index(months: Floats, censored: NDArray[np.bool_], risk: Floats, weights: Floats | None = None) -> Floats:
    """Harrell's concordance index; NaN where no pair can be compared.

    A pair can be compared where the one with the shorter time had the event; at equal times, where one had it and the
    other was censored then. It is concordant where the one who had it has the higher risk, and counts half where the
    risks are equal (Harrell, Lee, Mark 1996).

    Args:
        months: ``(N,)``.
        censored: ``(N,)``.
        risk: ``(N,)``, higher for earlier events.
        weights: ``(N, B)``, how often each patient was drawn, or None for once each; a pair weighs their product. Two
            draws of one patient are no pair: their times are equal.

    Returns:
        scalar, or ``(B,)``.
    """
    w = np.ones((len(months), 1)) if weights is None else weights
    agreed, compared = np.zeros(w.shape[1]), np.zeros(w.shape[1])
    events = np.flatnonzero(~censored)
    for start in range(0, len(events), _ROWS):
        i = events[start : start + _ROWS]
        later = (months[None] > months[i, None]) | ((months[None] == months[i, None]) & censored[None])
        ahead = np.sign(risk[i, None] - risk[None]) / 2 + 0.5
        compared += (w[i] * (later.astype(np.float64) @ w)).sum(axis=0)
        agreed += (w[i] * ((later * ahead) @ w)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        found = np.where(compared > 0, agreed / compared, np.nan)
    return np.asarray(found[0] if weights is None else found)


def risk_of(survival: NDArray[Any]) -> Floats:
    """Risk ``(N,)``: minus the sum over bins of the survival curve ``(N, K)``, as in HistoFL."""
    return np.asarray(-survival.astype(np.float64).sum(axis=1))


def survival_of(hazards: NDArray[Any]) -> Floats:
    """Survival curve ``S_k = Π_{j ≤ k} (1 − h_j)``, ``(N, K)``, of hazards ``(N, K)``."""
    return np.asarray(np.cumprod(1.0 - hazards.astype(np.float64), axis=1))


def validation_metrics(truth: Floats, hazards: NDArray[np.float32]) -> dict[str, float]:
    """What a site reports of its validation part each round: mean log loss and, where a pair can be compared, c-index.

    Args:
        truth: ``(N, 2)``: months, and the bin of the event or K + the bin of a censored bag.
        hazards: ``(N, K)``.
    """
    months, labels, bins = truth[:, 0], truth[:, 1].astype(np.int64), hazards.shape[1]
    censored, rows = labels >= bins, np.arange(len(labels))
    survival = np.concatenate([np.ones((len(labels), 1)), survival_of(hazards)], axis=1)
    at = labels % bins
    likelihood = np.where(censored, survival[rows, at + 1], survival[rows, at] * hazards[rows, at].astype(np.float64))
    found = {"loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean())}
    index = float(c_index(months, censored, risk_of(survival[:, 1:])))
    return found if np.isnan(index) else {"c_index": index, **found}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Predicted hazards of the bags, or of the patients, of one site, with what became of them.

    Attributes:
        edges: months that cut time into K bins, ``(K − 1,)``.
        ids: str ``(N,)``, no two alike.
        months: float64 ``(N,)``, to the event or to the end of observation.
        censored: bool ``(N,)``, whether no event was seen.
        survival: float64 ``(N, K)``, predicted probability to outlive each bin.
        clusters: str ``(N,)``, what the bootstrap resamples.
        cluster_unit: what a cluster is.

    Raises:
        DataError: a survival curve that is not finite, or leaves [0, 1]; names the bag.
    """

    edges: tuple[float, ...]
    ids: NDArray[np.str_]
    months: Floats
    censored: NDArray[np.bool_]
    survival: Floats
    clusters: NDArray[np.str_]
    cluster_unit: ClusterUnit

    def __post_init__(self) -> None:
        odd = ~(np.isfinite(self.survival).all(axis=1) & (self.survival >= 0).all(axis=1))
        odd |= (self.survival > 1).any(axis=1)
        if odd.any():
            raise DataError(
                f"Predictions: the survival curve of {self.ids[odd.argmax()]} is not within 0 and 1"
                + (f"; nor are {int(odd.sum()) - 1} more." if odd.sum() > 1 else "."),
                fix="the model's weights may hold NaN; look at the training loss of this unit.",
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def risk(self) -> Floats:
        """``(N,)``; see :func:`risk_of`."""
        return risk_of(self.survival)

    def at(self, rows: NDArray[np.int64]) -> Outcomes:
        """Some of the rows, in the order of ``rows``."""
        kept = (self.ids[rows], self.months[rows], self.censored[rows], self.survival[rows], self.clusters[rows])
        return Outcomes(self.edges, *kept, self.cluster_unit)

    def differs(self, other: Outcomes) -> str:
        """How the bags or their truth differ from those of another model, both sorted by id; empty: not at all."""
        if self.edges != other.edges:
            return f"its time has the edges {self.edges} in place of {other.edges}"
        return difference(self, other, (self.months, other.months), (self.censored, other.censored))

    def by_cluster(self) -> Outcomes:
        """One row a patient: the mean survival curve of the patient's bags; unchanged where a cluster is a bag."""
        names, first, codes = np.unique(self.clusters, return_index=True, return_inverse=True)
        curves = np.zeros((len(names), self.survival.shape[1]))
        np.add.at(curves, codes, self.survival)
        curves /= np.bincount(codes, minlength=len(names))[:, None]
        return Outcomes(
            self.edges, names, self.months[first], self.censored[first], curves, self.clusters[first], self.cluster_unit
        )


class SurvivalScores(Scores):
    """Vectors of units that predict survival; sites hold :class:`Outcomes`."""

    def _known_metrics(self, sites: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return METRICS, METRICS

    def _vectors_of(self, judged: Outcomes, resamples: int, seed: int) -> dict[str, Floats]:
        if not len(judged):
            return {name: np.full(1 + resamples, np.nan) for name in self.metrics}
        drawn = _replicated(judged, resamples, seed).get("c_index", np.empty(0))
        return {"c_index": np.append(c_index(judged.months, judged.censored, judged.risk), drawn)}

    def higher_is_better(self, metric: str) -> bool:
        """The c-index is."""
        return True

    @property
    def compared(self) -> list[str]:
        """All metrics."""
        return list(self.metrics)


def _replicated(outcomes: Outcomes, resamples: int, seed: int) -> dict[str, Floats]:
    def statistic(o: Outcomes, weights: Floats) -> dict[str, Floats]:
        return {"c_index": c_index(o.months, o.censored, o.risk, weights)}

    return replicate(outcomes, statistic, resamples=resamples, seed=seed)


def evaluate_outcomes(outcomes: Outcomes, *, role: Role, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The ``sites{…}`` block of ``results.json`` for one model at one site; ready for JSON.

    Args:
        outcomes: a row a patient (:meth:`Outcomes.by_cluster`); may be empty: the c-index is then null.
        role: whether the site took part in training or was held out.
        resamples, seed: of the bootstrap.
    """
    clusters = cluster_codes(outcomes.clusters)[1]
    value = float(c_index(outcomes.months, outcomes.censored, outcomes.risk))
    low = high = None
    if not np.isnan(value) and resamples:
        low, high = interval(_replicated(outcomes, resamples, seed)["c_index"], clusters)
    events = int((~outcomes.censored).sum())
    return {
        "role": role,
        "n": len(outcomes),
        "clusters": clusters,
        "cluster_unit": outcomes.cluster_unit,
        "metrics": {"c_index": {"value": None if np.isnan(value) else value, "low": low, "high": high}},
        "events": events,
        "risk_groups": risk_groups(outcomes),
        "notes": _notes(outcomes, events, np.isnan(value)),
    }


def _notes(outcomes: Outcomes, events: int, undefined: bool) -> list[str]:
    if not len(outcomes):
        return ["No test images: nothing can be computed."]
    notes = []
    if undefined:
        notes.append(f"No pair of the {len(outcomes)} can be compared ({events} events): there is no c-index.")
    elif events < FEW_EVENTS:
        notes.append(f"Only {events} of {len(outcomes)} had the event: intervals are too narrow.")
    return notes


def risk_groups(outcomes: Outcomes) -> dict[str, Any] | None:
    """Kaplan–Meier curves of the lower and the higher half by predicted risk, and the log-rank test between them.

    The halves are cut at the median risk of these very patients, without their outcomes.

    Returns:
        ``groups`` (``name``, ``n``, ``events``, ``curve``: months and survival of each step, the first and the last
        time among them) and ``logrank_p``, null without an event; None where the risks are all alike.
    """
    from scipy.stats import CensoredData, logrank

    risk = outcomes.risk
    if len(risk) < 2 or np.ptp(risk) == 0:
        return None
    upper = risk > np.median(risk)
    if not upper.any():  # more than half share the highest risk
        upper = risk == risk.max()
    parts = [outcomes.at(np.flatnonzero(here)) for here in (~upper, upper)]
    groups = [
        {"name": name, "n": len(part), "events": int((~part.censored).sum()), "curve": kaplan_meier(part)}
        for name, part in zip(GROUPS, parts, strict=True)
    ]
    p = None
    if not outcomes.censored.all():
        data = [CensoredData(part.months[~part.censored], right=part.months[part.censored]) for part in parts]
        p = float(logrank(*data).pvalue)
    return {"groups": groups, "logrank_p": p if p is not None and np.isfinite(p) else None}


def kaplan_meier(outcomes: Outcomes) -> list[list[float]]:
    """Steps ``[months, survival]`` of the product-limit estimate, from ``[0, 1]`` to the last time that was seen."""
    from scipy.stats import CensoredData, ecdf

    data = CensoredData(outcomes.months[~outcomes.censored], right=outcomes.months[outcomes.censored])
    found = ecdf(data).sf
    steps = np.stack([found.quantiles, found.probabilities], axis=1)
    moved = np.diff(np.concatenate([[1.0], found.probabilities])) != 0
    moved[-1] = True
    return [[0.0, 1.0], *steps[moved].tolist()]


def write_outcomes(path: Path, sites: Mapping[str, Outcomes]) -> None:
    """Write one unit's predictions at many sites to one Parquet file, atomically: a row a bag.

    Columns: ``site``, ``id``, ``cluster``, ``months``, ``censored``, ``risk`` and, per bin, ``survival/k``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = list(sites.items())
    edges = parts[0][1].edges
    texts = {"site": [site for site, o in parts for _ in range(len(o))]}
    texts |= {k: [v for _, o in parts for v in getattr(o, f"{k}s").tolist()] for k in ("id", "cluster")}
    columns: dict[str, Any] = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    for name in ("months", "censored", "risk"):
        columns[name] = pa.array(np.concatenate([getattr(o, name) for _, o in parts]))
    curves = np.concatenate([o.survival for _, o in parts])
    columns |= {f"{_SURVIVAL}{k}": pa.array(curves[:, k]) for k in range(len(edges) + 1)}
    about = {"version": 1, "edges": list(edges), "sites": {s: o.cluster_unit for s, o in parts}}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_outcomes(path: Path) -> dict[str, Outcomes]:
    """Read what :func:`write_outcomes` wrote, sites in the order written.

    Raises:
        StorageError: the file is missing, damaged, or not a file of outcomes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "remove it and its unit.json and run the same command again; the predictions are made anew."
    if not path.is_file():
        raise StorageError(f"{path} does not exist.", fix="run the study first; each finished unit writes it.")
    try:
        table = pq.ParquetFile(path).read()
        about = json.loads((table.schema.metadata or {})[_METADATA])
        edges, units = tuple(about["edges"]), dict(about["sites"])
        site_of, ids, clusters = (np.asarray(table[k].to_pylist(), dtype=np.str_) for k in ("site", "id", "cluster"))
        months, censored = table["months"].to_numpy(), table["censored"].to_numpy(zero_copy_only=False)
        curves = np.stack([table[f"{_SURVIVAL}{k}"].to_numpy() for k in range(len(edges) + 1)], axis=1)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as cause:
        raise StorageError(f"{path} cannot be read as outcomes of morphfed: {cause}.", fix=again) from cause
    found = {}
    for site, unit in units.items():
        here = site_of == site
        found[site] = Outcomes(edges, ids[here], months[here], censored[here], curves[here], clusters[here], unit)
    return found


def bin_names(edges: Sequence[float]) -> list[str]:
    """``0–12 months``, …, ``from 36 months``."""
    inner = [f"{a:g}–{b:g} months" for a, b in zip((0.0, *edges), edges, strict=False)]
    return [*inner, f"from {edges[-1]:g} months"]
