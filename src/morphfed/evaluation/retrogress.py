"""What communication does to a site: its score with the model it has just trained, and with the one it then gets.

The name is that of Chen, Zhu, Yang, Yuan: Personalized retrogress-resilient framework for real-world medical federated
learning. MICCAI 2021. For site k in round r the *drop* is

``d = before − after`` of a score, ``d = after − before`` of the loss; above 0 the site lost by the communication,

where *before* is the model at the end of the local training of round r, with the site's own parts, and *after* the
one that the site goes on with: the download of round r + 1 with the site's own parts, or its personal model. Both are
judged on the same validation images of the site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

METRICS = ("balanced_accuracy", "macro_f1", "dice", "iou", "loss")
MEAN_TRAINING = "mean_training"
LEVEL = 0.95
EQUAL = 1e-9
"""A score that changes by no more than this has not changed: averaging equal weights may round."""


@dataclass(frozen=True)
class Communication:
    """One site's change at the end of one round.

    Attributes:
        round: from 1.
        drop: above 0 the site lost.
        late: whether the round is of the second half of its training.
    """

    round: int
    drop: float
    late: bool


def drop(metric: str, before: float, after: float) -> float:
    """What was lost; above 0 the site did worse after the communication."""
    return after - before if metric == "loss" else before - after


def communications(unit: Mapping[str, Any], site: str, metric: str) -> list[Communication]:
    """Every recorded communication of a trained unit with one site, in the order of the rounds.

    Args:
        unit: with ``rounds`` and ``history`` as in ``unit.json``.
        site: a training site.
        metric: one of :data:`METRICS`.
    """
    found = []
    for entry in unit.get("history") or ():
        block = entry["sites"].get(site) or {}
        before, after = ((block.get(key) or {}).get(metric) for key in ("before", "validation"))
        if before is not None and after is not None:
            number = int(entry["round"])
            found.append(Communication(number, drop(metric, before, after), number > int(unit["rounds"]) // 2))
    return found


def summarise_retrogress(
    units: Iterable[Mapping[str, Any]], sites: Sequence[str], images: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Mean drop of every model at every training site, and over the sites.

    The communications of one training run depend on each other (each round starts where the last one ended), and a
    resample of rounds would treat them as if they did not. So the rounds of a seed are averaged first, and the interval
    is Student's t over the seeds' means, which are independent trainings: with S seeds it has S − 1 degrees of freedom.
    It says what another training of the same sites and the same split would give, not what other patients would.

    Args:
        units: as in ``unit.json``; of several with one model and one seed (folds) all communications count.
        sites: training sites, in the study's order.
        images: validation images by site.

    Returns:
        one entry a model, scope (a site, or ``mean_training``) and metric for which something was recorded.
    """
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for unit in units:
        by_model.setdefault(str(unit["model"]), []).append(unit)
    return [
        entry
        for model, mine in by_model.items()
        for metric in METRICS
        for entry in _entries({"model": model, "arm": mine[0]["arm"], "metric": metric}, mine, sites, images)
    ]


Runs = dict[int, list[Communication]]
"""Seed → its communications."""


def _entries(
    about: Mapping[str, str], units: Sequence[Mapping[str, Any]], sites: Sequence[str], images: Mapping[str, int]
) -> list[dict[str, Any]]:
    by_site: dict[str, Runs] = {}
    for site in sites:
        runs: Runs = {}
        for unit in units:
            if found := communications(unit, site, about["metric"]):
                runs.setdefault(int(unit["seed"]), []).extend(found)
        if runs:
            by_site[site] = runs
    if not by_site:
        return []
    entries = [{**about, "scope": s, **_figures({s: runs}), "images": images[s]} for s, runs in by_site.items()]
    total = sum(images[site] for site in by_site)
    return [*entries, {**about, "scope": MEAN_TRAINING, **_figures(by_site), "images": total}]


def _figures(by_site: Mapping[str, Runs]) -> dict[str, Any]:
    """Numbers of one scope: every site counts alike in a seed's mean, every communication in the shares."""
    every = [c for runs in by_site.values() for found in runs.values() for c in found]
    return {
        **_over_seeds(_seed_means(by_site, late=False)),
        "late": _over_seeds(_seed_means(by_site, late=True)),
        "communications": len(every),
        "hurt": sum(c.drop > EQUAL for c in every) / len(every),
        "helped": sum(c.drop < -EQUAL for c in every) / len(every),
    }


def _seed_means(by_site: Mapping[str, Runs], *, late: bool) -> list[float]:
    """Of every seed the mean over sites of the mean over rounds; seeds that lack a site are left out."""
    seeds = sorted({seed for runs in by_site.values() for seed in runs})
    means = []
    for seed in seeds:
        drops = [[c.drop for c in runs.get(seed, ()) if c.late or not late] for runs in by_site.values()]
        if all(drops):
            means.append(fmean(fmean(d) for d in drops))
    return means


def _over_seeds(means: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation and 95 % t interval over seeds; the last three are None with fewer than two."""
    if not means:
        return {"mean": None, "sd": None, "low": None, "high": None, "seeds": 0}
    mean = fmean(means)
    if len(means) < 2:
        return {"mean": mean, "sd": None, "low": None, "high": None, "seeds": 1}
    from scipy.stats import t

    sd = stdev(means)
    half = float(t.ppf(0.5 + LEVEL / 2, len(means) - 1)) * sd / len(means) ** 0.5
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "seeds": len(means)}
