"""What a model said about the images of one site, checked once and kept as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morphfed.core.errors import DataError, StorageError
from morphfed.core.files import writing
from morphfed.tasks.temperature import log_odds, normalised, tempered

ClusterUnit = Literal["patient", "lesion", "image", "bag"]


class Judged(Protocol):
    """What a model said of the images of one site, whatever its task: all that resampling and pairing ask."""

    @property
    def ids(self) -> NDArray[np.str_]:
        """Names of the images ``(N,)``, no two alike."""
        ...

    @property
    def clusters(self) -> NDArray[np.str_]:
        """What the bootstrap resamples ``(N,)``."""
        ...

    @property
    def cluster_unit(self) -> ClusterUnit:
        """What a cluster is."""
        ...

    def __len__(self) -> int: ...

    def at(self, rows: NDArray[np.int64]) -> Self:
        """The same of some of the images, in the order of ``rows``."""
        ...

    def differs(self, other: Self) -> str:
        """How the images or their truth differ from those of another model, both sorted by id; empty: not at all."""
        ...


J = TypeVar("J", bound=Judged)


def difference(a: Judged, b: Judged, *truth: tuple[NDArray[Any], NDArray[Any]]) -> str:
    """How the images of two models differ, both sorted by id, or their truth; empty: not at all."""
    pairs = [(a.ids, b.ids), (a.clusters, b.clusters), *truth]
    if a.cluster_unit == b.cluster_unit and len(a) == len(b) and all((x == y).all() for x, y in pairs):
        return ""
    odd = sorted(set(a.ids.tolist()) ^ set(b.ids.tolist()))
    return f"{len(odd)} images are in one only, such as {odd[0]}" if odd else "labels or patients differ"


def in_order(judged: J) -> J:
    """The same sorted by image id, so that two models' rows pair up."""
    return judged.at(np.argsort(judged.ids, kind="stable"))


def only(judged: J, ids: NDArray[np.str_]) -> J:
    """What was said of some of the images, in the order of ``ids``.

    Raises:
        DataError: an image is not among those predicted.
    """
    where = {name: row for row, name in enumerate(judged.ids.tolist())}
    missing = [name for name in ids.tolist() if name not in where]
    if missing:
        raise DataError(
            f"{len(missing)} images were never predicted, such as {missing[0]}.",
            fix="remove the stale predictions.parquet's folder and run the same command again.",
        )
    return judged.at(np.array([where[name] for name in ids.tolist()], dtype=np.int64))


_SUM_TOLERANCE = 1e-3
_METADATA = b"morphfed.predictions"
_PROBABILITY = "p/"
_LOG_PROBABILITY = "log p/"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted probabilities for the images of one site, with their truth.

    Attributes:
        classes: names of the C classes, in the study's order.
        ids: str (N,), the images' paths; no two alike.
        labels: int64 (N,), the truth as an index into ``classes``.
        probabilities: float32 (N, C); each row sums to 1.
        clusters: str (N,), what the bootstrap resamples: the patient's id, else the lesion's, else the image's.
        cluster_unit: ``"patient"`` where clusters are patients, ``"lesion"`` where only lesions are known, else
            ``"image"`` or, of multiple-instance learning, ``"bag"``.
        log_probabilities: float64 (N, C), natural logarithms of the probabilities as the logits gave them: where
            float32 rounds to 0 or 1 they still say by how much. None: not kept (files of earlier versions).

    Raises:
        DataError: the parts disagree in length, a label is out of range, or a row is no distribution.
    """

    classes: tuple[str, ...]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    clusters: NDArray[np.str_]
    cluster_unit: ClusterUnit
    log_probabilities: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "classes", tuple(self.classes))
        put(self, "ids", _strings(self.ids))
        put(self, "labels", _integers(self.labels))
        put(self, "probabilities", np.asarray(self.probabilities, dtype=np.float32))
        put(self, "clusters", _strings(self.clusters))
        if self.log_probabilities is not None:
            put(self, "log_probabilities", np.asarray(self.log_probabilities, dtype=np.float64))
        _check(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes that occur in the truth, in the order of ``classes``."""
        found = np.bincount(self.labels, minlength=len(self.classes)) > 0
        return tuple(name for name, there in zip(self.classes, found, strict=True) if there)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """int64 (N,): the most probable class of each image (the first of equals)."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @cached_property
    def ranking(self) -> NDArray[np.floating]:
        """What each class's images are ranked by, (N, C): log-odds, or probabilities where no logarithms were kept.

        Log-odds of a class rise with its probability and do not tie where that rounds to 0 or 1.
        """
        return self.probabilities if self.log_probabilities is None else log_odds(self.log_probabilities)

    def masked(self, present: Iterable[str]) -> Predictions:
        """Leave only the classes ``present`` possible and renormalise; the order and number of classes stay.

        A row whose whole probability lay on other classes (float32 underflow) is told by its logarithms; where
        none were kept it becomes uniform over ``present``.

        Raises:
            DataError: ``present`` is empty, names an unknown class, or leaves out a class of the truth.
        """
        wanted = set(present)
        unknown = wanted - set(self.classes)
        if unknown or not wanted:
            raise DataError(
                f"Predictions cannot be masked to {sorted(wanted)}: the classes are {', '.join(self.classes)}.",
                fix="mask to at least one class, all of them classes of the study.",
            )
        missing = set(self.present) - wanted
        if missing:
            raise DataError(
                f"Predictions cannot be masked to {sorted(wanted)}: "
                f"images of {', '.join(sorted(missing))} are among them.",
                fix="mask to every class that occurs in the truth.",
            )
        keep = np.array([name in wanted for name in self.classes])
        values = self.probabilities.astype(np.float64) * keep
        total = values.sum(axis=1, keepdims=True)
        logs, lost = None, np.broadcast_to(keep / keep.sum(), values.shape)
        if self.log_probabilities is not None:
            logs = normalised(np.where(keep, self.log_probabilities, -np.inf))
            lost = np.exp(logs)
        values = np.where(total > 0, values / np.where(total > 0, total, 1.0), lost)
        return Predictions(self.classes, self.ids, self.labels, values, self.clusters, self.cluster_unit, logs)

    def at(self, rows: NDArray[np.int64]) -> Predictions:
        """The predictions of some of the images, in the order of ``rows``."""
        kept = (self.ids[rows], self.labels[rows], self.probabilities[rows], self.clusters[rows])
        logs = None if self.log_probabilities is None else self.log_probabilities[rows]
        return Predictions(self.classes, *kept, self.cluster_unit, logs)

    def differs(self, other: Predictions) -> str:
        """How the images or their truth differ from those of another model, both sorted by id; empty: not at all."""
        if self.classes != other.classes:
            return f"it predicts {', '.join(self.classes)} in place of {', '.join(other.classes)}"
        return difference(self, other, (self.labels, other.labels))

    def only(self, ids: NDArray[np.str_]) -> Predictions:
        """See :func:`only`."""
        return only(self, ids)

    def tempered(self, temperature: float) -> Predictions:
        """The same predictions at another temperature (:mod:`morphfed.tasks.temperature`); 1 changes nothing."""
        if temperature == 1.0:
            return self
        values = tempered(self.probabilities, temperature).astype(np.float32)
        logs = None if self.log_probabilities is None else normalised(self.log_probabilities / temperature)
        return Predictions(self.classes, self.ids, self.labels, values, self.clusters, self.cluster_unit, logs)

    def save(self, path: Path) -> None:
        """Write to Parquet, atomically; the file holds this one set of predictions."""
        write_predictions(path, {"": self})

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read a file that holds one set of predictions (any site's name).

        Raises:
            StorageError: missing or damaged file, or one that holds several sites.
        """
        sites = read_predictions(path)
        if len(sites) != 1:
            raise StorageError(
                f"{path} holds the predictions of {len(sites)} sites ({', '.join(sites)}), one was expected.",
                fix="read it with read_predictions, which returns every site.",
            )
        return next(iter(sites.values()))


def _strings(values: ArrayLike) -> NDArray[np.str_]:
    array = np.asarray(values)
    return array if array.dtype.kind == "U" else np.asarray([str(v) for v in array.tolist()], dtype=np.str_)


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(
            f"Labels of predictions are of type {array.dtype}, integers were expected.",
            fix="give each image's class as its index into `classes`.",
        )
    return array.astype(np.int64)


def _check(p: Predictions) -> None:
    n, c = len(p.labels), len(p.classes)
    fix = "this comes from the code that made the predictions; give one value an image."
    if c == 0 or len(set(p.classes)) != c:
        raise DataError(f"Predictions need distinct class names, got {list(p.classes)}.", fix="name each class once.")
    if p.cluster_unit not in get_args(ClusterUnit):
        raise DataError(f"cluster_unit is {p.cluster_unit!r}.", fix="use 'patient', 'lesion', 'image' or 'bag'.")
    shapes = {"ids": p.ids.shape, "labels": p.labels.shape, "clusters": p.clusters.shape}
    for name, shape in shapes.items():
        if shape != (n,):
            raise DataError(f"Predictions: {name} has shape {shape}, ({n},) was expected.", fix=fix)
    if p.probabilities.shape != (n, c):
        raise DataError(
            f"Predictions: probabilities have shape {p.probabilities.shape}, ({n}, {c}) was expected: "
            f"{n} images, {c} classes.",
            fix=fix,
        )
    if p.log_probabilities is not None and p.log_probabilities.shape != (n, c):
        raise DataError(
            f"Predictions: log_probabilities have shape {p.log_probabilities.shape}, ({n}, {c}) was expected.", fix=fix
        )
    if n == 0:
        return
    _check_rows(p)


def _check_rows(p: Predictions) -> None:
    def first(bad: NDArray[np.bool_]) -> str:
        row = int(bad.argmax())
        return f"row {row} ({p.ids[row]})" + (f" and {int(bad.sum()) - 1} more" if bad.sum() > 1 else "")

    bad: NDArray[np.bool_] = (p.labels < 0) | (p.labels >= len(p.classes))
    if bad.any():
        raise DataError(
            f"Predictions: the label of {first(bad)} is {p.labels[bad.argmax()]}, "
            f"0 to {len(p.classes) - 1} was expected.",
            fix="labels are indices into the study's classes; leave out images that map to none.",
        )
    bad = np.asarray(~np.isfinite(p.probabilities).all(axis=1))
    if bad.any():
        raise DataError(
            f"Predictions: {first(bad)} has a probability that is not finite.",
            fix="the model's weights may hold NaN; look at the training loss of this unit.",
        )
    total = p.probabilities.sum(axis=1, dtype=np.float64)
    bad = np.asarray((p.probabilities < 0).any(axis=1) | (np.abs(total - 1) > _SUM_TOLERANCE))
    if bad.any():
        raise DataError(
            f"Predictions: {first(bad)} is no distribution (sum {total[bad.argmax()]:.4g}, "
            f"lowest {p.probabilities[bad.argmax()].min():.4g}).",
            fix="give probabilities (softmax in float32), not logits.",
        )
    bad = np.asarray(np.isnan(p.probabilities if p.log_probabilities is None else p.log_probabilities).any(axis=1))
    if bad.any():
        raise DataError(f"Predictions: {first(bad)} has a logarithm that is NaN.", fix="give log-softmax of logits.")
    names, counts = np.unique(p.ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"Predictions: {names[counts.argmax()]} occurs {counts.max()} times; "
            f"{int((counts > 1).sum())} images repeat.",
            fix="predict each image of a site once.",
        )


def write_predictions(path: Path, sites: Mapping[str, Predictions]) -> None:
    """Write one unit's predictions at many sites to one Parquet file, atomically.

    Columns: ``site``, ``id``, ``truth`` (class name), ``cluster`` and, per class, ``p/<class>`` and, where all sites
    have them, ``log p/<class>``; classes and cluster units are in the file's metadata, so a site without images
    survives too.

    Raises:
        DataError: no sites, or sites with different classes.
        StorageError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not sites:
        raise DataError("There are no predictions to write.", fix="predict at one site at least.")
    classes = next(iter(sites.values())).classes
    for site, p in sites.items():
        if p.classes != classes:
            raise DataError(
                f"Site '{site}' has the classes {', '.join(p.classes)}; the others have {', '.join(classes)}.",
                fix="predict all sites of a unit with the classes of the study, in its order.",
            )
    parts = list(sites.items())
    probabilities = np.concatenate([p.probabilities for _, p in parts])
    names = np.array(classes)
    columns: dict[str, Any] = {
        "site": pa.array([site for site, p in parts for _ in range(len(p))], pa.string()),
        "id": pa.array([v for _, p in parts for v in p.ids.tolist()], pa.string()),
        "truth": pa.array([v for _, p in parts for v in names[p.labels].tolist()], pa.string()),
        "cluster": pa.array([v for _, p in parts for v in p.clusters.tolist()], pa.string()),
    }
    columns |= {_PROBABILITY + name: pa.array(probabilities[:, k]) for k, name in enumerate(classes)}
    logs = [p.log_probabilities for _, p in parts if p.log_probabilities is not None]
    if len(logs) == len(parts):
        together = np.concatenate(logs)
        columns |= {_LOG_PROBABILITY + name: pa.array(together[:, k]) for k, name in enumerate(classes)}
    about = {"version": 1, "classes": list(classes), "sites": {s: p.cluster_unit for s, p in parts}}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about).encode()})
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Read what :func:`write_predictions` wrote, sites in the order written.

    Raises:
        StorageError: the file is missing, damaged, or not a predictions file.
        DataError: its content is not valid (see :class:`Predictions`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    again = "remove it and run the same command again; the predictions are made anew."
    if not path.is_file():
        raise StorageError(f"{path} does not exist.", fix="run the study first; each finished unit writes it.")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as cause:
        raise StorageError(f"{path} cannot be read: {cause}.", fix=again) from cause
    try:
        about = json.loads((table.schema.metadata or {})[_METADATA])
        classes, units = tuple(about["classes"]), dict(about["sites"])
        site_of = np.asarray(table["site"].to_pylist(), dtype=np.str_)
        columns = {k: np.asarray(table[k].to_pylist(), dtype=np.str_) for k in ("id", "truth", "cluster")}
        values = np.stack([table[_PROBABILITY + name].to_numpy() for name in classes], axis=1)
        kept = all(_LOG_PROBABILITY + name in table.column_names for name in classes)
        logs = np.stack([table[_LOG_PROBABILITY + name].to_numpy() for name in classes], axis=1) if kept else None
        index = {name: k for k, name in enumerate(classes)}
        labels = np.array([index[name] for name in columns["truth"].tolist()], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as cause:
        raise StorageError(f"{path} is not a predictions file of morphfed ({cause}).", fix=again) from cause
    result = {}
    for site, unit in units.items():
        rows = site_of == site
        of_site = (columns["id"][rows], labels[rows], values[rows], columns["cluster"][rows])
        result[site] = Predictions(classes, *of_site, unit, None if logs is None else logs[rows])
    return result
