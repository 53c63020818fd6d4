"""What a model drew at one site, scored case by case, kept as Parquet, and judged like any other predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import StorageError
from morphfed.core.files import writing
from morphfed.evaluation import masks as m
from morphfed.evaluation.bootstrap import RESAMPLES, cluster_codes, interval, replicate
from morphfed.evaluation.metrics import Floats
from morphfed.evaluation.predictions import ClusterUnit, difference
from morphfed.evaluation.scores import Scores
from morphfed.evaluation.site import FEW_IMAGES, Role

METRICS = ("dice", "iou", "hd95_px", "hd95_um")
"""Metrics of a case and structure; without a structure behind a slash (``dice/nucleus``) the mean over structures."""

COMPARED = ("dice", "iou", "hd95_px")
"""Those for which differences between models are stated, and of each structure the first."""

_METADATA = b"morphfed.cases"
_MEASURED = ("truth_px", "predicted_px", "both_px", "hd95_px")


@dataclass(frozen=True, eq=False)
class Cases:
    """Scores of the masks that a model drew for the images of one site.

    Attributes:
        structures: names of the K structures, in the study's order.
        ids: str ``(N,)``, the images' names; no two alike.
        clusters: str ``(N,)``, what the bootstrap resamples.
        cluster_unit: what a cluster is.
        truth_px, predicted_px, both_px: ``(N, K)``, pixels of each structure in the true mask, the drawn one, and both.
        hd95_px: ``(N, K)``, 95 % Hausdorff distance in pixels of the stored mask, NaN where it does not exist.
        um_per_px: ``(N,)``, micrometres per pixel of the stored mask, NaN where the scale is not known.
    """

    structures: tuple[str, ...]
    ids: NDArray[np.str_]
    clusters: NDArray[np.str_]
    cluster_unit: ClusterUnit
    truth_px: Floats
    predicted_px: Floats
    both_px: Floats
    hd95_px: Floats
    um_per_px: Floats

    rowwise: ClassVar[tuple[str, ...]] = ("ids", "clusters", *_MEASURED, "um_per_px")

    @classmethod
    def of(
        cls,
        truth: NDArray[np.uint8],
        predicted: NDArray[np.uint8],
        *,
        structures: Sequence[str],
        ids: NDArray[np.str_],
        clusters: NDArray[np.str_],
        cluster_unit: ClusterUnit,
        um_per_px: Floats,
    ) -> Cases:
        """Score masks ``(N, S, S)``; see :class:`Cases` for the rest."""
        both, true, drawn = m.overlaps(truth, predicted, len(structures))
        far = m.distances(truth, predicted, len(structures))
        return cls(tuple(structures), ids, clusters, cluster_unit, true, drawn, both, far, um_per_px)

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: NDArray[np.int64]) -> Cases:
        """Some of the cases, in the order of ``rows``."""
        kept = {name: getattr(self, name)[rows] for name in self.rowwise}
        return Cases(self.structures, cluster_unit=self.cluster_unit, **kept)

    def differs(self, other: Cases) -> str:
        """How the images or their true masks differ from another model's, both sorted by id; empty: not at all."""
        if self.structures != other.structures:
            return f"it draws {', '.join(self.structures)} in place of {', '.join(other.structures)}"
        return difference(self, other, (self.truth_px, other.truth_px))

    def values(self, metric: str) -> Floats:
        """One of :data:`METRICS` of each case and structure, ``(N, K)``; NaN where it is not defined."""
        if metric == "hd95_um":
            return self.hd95_px * self.um_per_px[:, None]
        if metric == "hd95_px":
            return self.hd95_px
        formula = {"dice": m.dice, "iou": m.iou}[metric]
        return formula(self.both_px, self.truth_px, self.predicted_px)

    def means(self, weights: Floats | None = None, metrics: Sequence[str] = METRICS) -> dict[str, Floats]:
        """Means over cases, each ``weights.shape[1:]``: of each structure (``dice/nucleus``), and over structures."""
        found: dict[str, Floats] = {}
        for metric in metrics:
            each = m.mean_over_cases(self.values(metric), weights)
            found[metric] = m.mean_over_structures(each)
            found |= {f"{metric}/{name}": each[k] for k, name in enumerate(self.structures)}
        return found


class CaseScores(Scores):
    """Vectors of units that draw masks; sites hold :class:`Cases`."""

    def _known_metrics(self, sites: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        structures = next(iter(sites.values())).structures
        every = tuple(name for metric in METRICS for name in (metric, *(f"{metric}/{s}" for s in structures)))
        return every, every

    def _vectors_of(self, judged: Cases, resamples: int, seed: int) -> dict[str, Floats]:
        if not len(judged):
            return {name: np.full(1 + resamples, np.nan) for name in self.metrics}
        estimate, drawn = judged.means(), _replicated(judged, resamples, seed)
        return {name: np.append(estimate[name], drawn.get(name, np.empty(0))) for name in self.metrics}

    def higher_is_better(self, metric: str) -> bool:
        """Dice and IoU are; distances are not."""
        return not metric.startswith("hd95")

    def largest(self, metric: str) -> float:
        """1 for Dice and IoU; a distance has no largest value."""
        return 1.0 if self.higher_is_better(metric) else math.inf

    @property
    def compared(self) -> list[str]:
        """Metrics for which differences are stated."""
        return [name for name in self.metrics if name in COMPARED or name.startswith("dice/")]


def _replicated(cases: Cases, resamples: int, seed: int) -> dict[str, Floats]:
    return replicate(cases, lambda c, w: c.means(w), resamples=resamples, seed=seed)


def evaluate_cases(cases: Cases, *, role: Role, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The ``sites{…}`` block of ``results.json`` for one model at one site; ready for JSON.

    Args:
        cases: may be empty; every metric is then null.
        role: whether the site took part in training or was held out.
        resamples, seed: of the bootstrap.
    """
    clusters = cluster_codes(cases.clusters)[1]
    drawn = _replicated(cases, resamples, seed)
    found: dict[str, dict[str, float | None]] = {}
    for name, value in cases.means().items():
        number = float(value) if len(cases) and np.isfinite(value) else None
        low, high = interval(drawn[name], clusters) if number is not None and drawn else (None, None)
        found[name] = {"value": number, "low": low, "high": high}
    structures = {
        name: {
            **{metric: found[f"{metric}/{name}"] for metric in METRICS},
            **_counted(cases.truth_px[:, k] > 0, cases.predicted_px[:, k] > 0),
        }
        for k, name in enumerate(cases.structures)
    }
    return {
        "role": role,
        "n": len(cases),
        "clusters": clusters,
        "cluster_unit": cases.cluster_unit,
        "metrics": {metric: found[metric] for metric in METRICS},
        "structures": structures,
        "notes": notes_of_cases(len(cases), structures, clusters, cases.cluster_unit),
    }


def _counted(true: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> dict[str, int]:
    """Cases that show a structure, and those in which it was not found at all, or drawn where there is none."""
    return {"n": int(true.sum()), "missed": int((true & ~drawn).sum()), "false": int((drawn & ~true).sum())}


def notes_of_cases(n: int, structures: Mapping[str, Mapping[str, Any]], clusters: int, unit: str) -> list[str]:
    """What a reader must know before trusting a block's numbers.

    Args:
        n: test images.
        structures: of the block.
        clusters: what was resampled, and ``unit`` what one is.
    """
    if not n:
        return ["No test images: nothing can be computed."]
    notes = []
    shown = {name: int(block["n"]) for name, block in structures.items()}
    if absent := [name for name, k in shown.items() if k == 0]:
        notes.append(f"No test image shows {', '.join(absent)}: only what was drawn for nothing is judged there.")
    if few := [f"{name} ({k})" for name, k in shown.items() if 0 < k < FEW_IMAGES]:
        notes.append(f"Fewer than {FEW_IMAGES} test images show {', '.join(few)}: intervals are too narrow.")
    if undefined := sum(int(block["missed"]) + int(block["false"]) for block in structures.values()):
        notes.append(
            f"{undefined} times a structure was missed altogether or drawn where there is none: no distance exists "
            "there, so such cases lower Dice and IoU and do not enter the mean distance."
        )
    if clusters < 2:
        notes.append(f"All images come from one {unit}: no interval can be given.")
    return notes


def write_cases(path: Path, sites: Mapping[str, Cases]) -> None:
    """Write one unit's cases at many sites to one Parquet file, atomically: a row an image and structure.

    Columns: ``site``, ``id``, ``cluster``, ``structure``, ``truth_px``, ``predicted_px``, ``both_px``, ``hd95_px``,
    ``um_per_px``; and, to read, ``dice`` and ``iou``, which are made of these.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    structures = next(iter(sites.values())).structures
    columns: dict[str, list[Any]] = {name: [] for name in ("site", "id", "cluster", "structure")}
    measured: dict[str, list[Floats]] = {name: [] for name in (*_MEASURED, "um_per_px", "dice", "iou")}
    for site, cases in sites.items():
        n, k = len(cases), len(structures)
        columns["site"] += [site] * (n * k)
        columns["id"] += np.repeat(cases.ids, k).tolist()
        columns["cluster"] += np.repeat(cases.clusters, k).tolist()
        columns["structure"] += list(structures) * n
        for name in _MEASURED:
            measured[name].append(getattr(cases, name).ravel())
        measured["um_per_px"].append(np.repeat(cases.um_per_px, k))
        for name in ("dice", "iou"):
            measured[name].append(cases.values(name).ravel())
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    arrays |= {name: pa.array(np.concatenate(values)) for name, values in measured.items()}
    about = {"version": 1, "structures": list(structures), "sites": {s: c.cluster_unit for s, c in sites.items()}}
    table = pa.table(arrays).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_cases(path: Path) -> dict[str, Cases]:
    """Read what :func:`write_cases` wrote, sites in the order written.

    Raises:
        StorageError: the file is missing, damaged, or not a file of cases.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "remove it and its unit.json and run the same command again; the masks are drawn anew."
    if not path.is_file():
        raise StorageError(f"{path} does not exist.", fix="run the study first; each finished unit writes it.")
    try:
        table = pq.ParquetFile(path).read()
        about = json.loads((table.schema.metadata or {})[_METADATA])
        structures, units = tuple(about["structures"]), dict(about["sites"])
        k = len(structures)
        texts = {name: np.asarray(table[name].to_pylist(), dtype=np.str_) for name in ("site", "id", "cluster")}
        numbers = {name: table[name].to_numpy().astype(np.float64) for name in (*_MEASURED, "um_per_px")}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as cause:
        raise StorageError(f"{path} cannot be read as cases of morphfed: {cause}.", fix=again) from cause
    found = {}
    for site, unit in units.items():
        rows = texts["site"] == site
        each = {name: numbers[name][rows].reshape(-1, k) for name in _MEASURED}
        ids, clusters = texts["id"][rows][::k], texts["cluster"][rows][::k]
        found[site] = Cases(structures, ids, clusters, unit, um_per_px=numbers["um_per_px"][rows][::k], **each)
    return found
