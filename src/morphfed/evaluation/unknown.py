"""Cells of none of the study's classes: whether a model is less sure of them, and how many a threshold stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import StorageError
from morphfed.core.files import writing
from morphfed.evaluation.bootstrap import RESAMPLES, cluster_codes, interval, replicate
from morphfed.evaluation.calibration import risk_coverage_points
from morphfed.evaluation.metrics import Floats, class_auroc
from morphfed.evaluation.predictions import Predictions
from morphfed.tasks.rejection import confidence
from morphfed.tasks.temperature import log_odds, normalised, tempered


@dataclass(frozen=True)
class Strangers:
    """What a model said about a site's images of none of the classes.

    Attributes:
        ids: str ``(N,)``, the images' paths.
        kinds: str ``(N,)``, the cell types by the ontology's names.
        clusters: str ``(N,)``, the patient's id, else the image's.
        probabilities: float32 ``(N, C)``.
        log_probabilities: float64 ``(N, C)``, as in :class:`Predictions`; None: not kept.
    """

    ids: NDArray[np.str_]
    kinds: NDArray[np.str_]
    clusters: NDArray[np.str_]
    probabilities: NDArray[np.float32]
    log_probabilities: NDArray[np.float64] | None = None

    def tempered(self, temperature: float) -> Strangers:
        """The same at another temperature."""
        values = tempered(self.probabilities, temperature).astype(np.float32)
        logs = None if self.log_probabilities is None else normalised(self.log_probabilities / temperature)
        return Strangers(self.ids, self.kinds, self.clusters, values, logs)


def write_strangers(path: Path, sites: Mapping[str, Strangers], classes: tuple[str, ...]) -> None:
    """Write all sites' to one Parquet file, atomically: site, id, kind, cluster, and per class ``p/CLASS`` and
    ``log p/CLASS``.
    """
    import pandas as pd

    frames = []
    for site, found in sites.items():
        columns: dict[str, Any] = {"site": site, "id": found.ids, "kind": found.kinds, "cluster": found.clusters}
        columns |= {f"p/{name}": found.probabilities[:, c] for c, name in enumerate(classes)}
        if found.log_probabilities is not None:
            columns |= {f"log p/{name}": found.log_probabilities[:, c] for c, name in enumerate(classes)}
        frames.append(pd.DataFrame(columns))
    frame = pd.concat(frames) if frames else pd.DataFrame(columns=["site", *(f"p/{name}" for name in classes)])
    with writing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_strangers(path: Path) -> dict[str, Strangers]:
    """Inverse of :func:`write_strangers`.

    Raises:
        StorageError: the file is missing or damaged.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as cause:
        raise StorageError(
            f"{path} cannot be read: {cause}.", fix="remove its unit's folder; it is trained again."
        ) from cause
    columns = [name for name in frame.columns if name.startswith("p/")]
    logs = [name for name in frame.columns if name.startswith("log p/")]
    return {
        str(site): Strangers(
            ids=here["id"].to_numpy().astype(str),
            kinds=here["kind"].to_numpy().astype(str),
            clusters=here["cluster"].to_numpy().astype(str),
            probabilities=here[columns].to_numpy(dtype=np.float32),
            log_probabilities=here[logs].to_numpy(dtype=np.float64) if logs else None,
        )
        for site, here in frame.groupby("site", sort=False)
    }


def judge_strangers(
    known: Predictions,
    strangers: Strangers | None,
    threshold: float | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The ``unknown`` block of a model at a site: known test images against cells of none of the classes.

    Args:
        known: the site's test images.
        strangers: cells of none of the classes; None: the site holds none.
        threshold: images of less confidence are rejected; None: none was chosen.
        resamples: behind the AUROC's interval; known and unknown cells' clusters are drawn together.
        seed: of the resampling.
    """
    sure = confidence(known.probabilities)
    if strangers is None or not len(strangers.ids):
        return {
            "n": 0,
            "auroc": {"value": None, "low": None, "high": None},
            "known_accepted": _share(sure, threshold),
            "unknown_rejected": None,
            "kinds": {},
            "risk_coverage": [],
        }
    unsure = confidence(strangers.probabilities)
    rejected = _share(unsure, threshold)
    kinds = {}
    for kind in sorted(set(strangers.kinds.tolist())):
        here = _share(unsure[strangers.kinds == kind], threshold)
        kinds[kind] = {"n": int((strangers.kinds == kind).sum()), "rejected": None if here is None else 1.0 - here}
    return {
        "n": len(strangers.ids),
        "auroc": _auroc(known, strangers, resamples, seed),
        "known_accepted": _share(sure, threshold),
        "unknown_rejected": None if rejected is None else 1.0 - rejected,
        "kinds": kinds,
        "risk_coverage": risk_coverage_points(_together(known, strangers)),
    }


def _share(sure: Floats, threshold: float | None) -> float | None:
    """Accepted share."""
    return float((sure >= threshold).mean()) if threshold is not None and len(sure) else None


def _auroc(known: Predictions, strangers: Strangers, resamples: int, seed: int) -> dict[str, float | None]:
    """Chance that a known cell's confidence is above an unknown one's (ties one half), with its interval.

    Ranked by the log-odds of the most probable class where all have them: confidence of float32 rounds to 1.
    """
    if not len(known):
        return {"value": None, "low": None, "high": None}
    sure = np.append(confidence(known.probabilities), confidence(strangers.probabilities))
    logs = None
    if known.log_probabilities is not None and strangers.log_probabilities is not None:
        odds = np.append(known.ranking.max(axis=1), log_odds(strangers.log_probabilities).max(axis=1))
        logs = -np.logaddexp(0.0, np.stack([odds, -odds], axis=1))  # whose log-odds are -odds and odds
    pairs = Predictions(
        ("unknown", "known"),
        np.append(known.ids, strangers.ids),
        np.append(np.ones(len(known), dtype=np.int64), np.zeros(len(strangers.ids), dtype=np.int64)),
        np.stack([1.0 - sure, sure], axis=1),
        np.append(known.clusters, strangers.clusters),
        known.cluster_unit,
        logs,
    )

    def statistic(p: Predictions, weights: Floats) -> dict[str, Floats]:
        return {"auroc": class_auroc(p.labels, p.ranking, weights)[1]}

    value = float(class_auroc(pairs.labels, pairs.ranking)[1])
    drawn = replicate(pairs, statistic, resamples=resamples, seed=seed)["auroc"]
    low, high = interval(drawn, cluster_codes(pairs.clusters)[1])
    return {"value": value, "low": low, "high": high}


def _together(known: Predictions, strangers: Strangers) -> Predictions:
    """Known and unknown images in one: whatever is said of an unknown cell is wrong."""
    count = len(known.classes)
    wrong = (strangers.probabilities.argmax(axis=1) + 1) % count
    return Predictions(
        known.classes,
        np.append(known.ids, strangers.ids),
        np.append(known.labels, wrong),
        np.concatenate([known.probabilities, strangers.probabilities]),
        np.append(known.clusters, strangers.clusters),
        known.cluster_unit,
    )
