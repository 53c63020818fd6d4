"""The first words of a study that holds out every site in turn: who does best at a site that took no part.

The same rules as in :mod:`morphfed.reporting.summary`. One difference: the headline names the arm with the highest mean
score, whichever it is, because that is the question of such a study; the cautions say that it was picked by that score.
"""

from __future__ import annotations

from collections.abc import Sequence

from morphfed.reporting.cautions import cautions
from morphfed.reporting.results import Model, Results
from morphfed.reporting.summary import (
    Finding,
    Summary,
    against,
    difference,
    direction,
    first,
    groups_of,
    with_interval,
)
from morphfed.reporting.text import capital, listed, metric_name, score, shortened

MEAN = "mean_held_out"


def summarise_folds(r: Results) -> Summary:
    """Words for the numbers of all folds together."""
    makers = (_arms, _pooled, _mean_local, _best_local, _by_site, _drop)
    findings = tuple(f for f in (make(r) for make in makers) if f is not None)
    return Summary(_headline(r), findings, tuple(cautions(r)))


def _headline(r: Results) -> str:
    models = _compared(r)
    n = len(r.held_out)
    if not models:
        return f"No arm has results in all {n} folds, so nothing is said of a site that took no part."
    best = models[0]
    text = (
        f"At a site that took no part in training (each of the {n} in turn), {_called(best)} scored highest: mean "
        f"{metric_name(r.metric)} {with_interval(r.estimate(best, MEAN))}."
    )
    federated = [m for m in models if m.kind == "federated"]
    if not federated:
        return f"{text} This run has no federated arm, so it does not say whether federation helps."
    if best.kind == "federated":
        said = [_against(r, best, other) for other in models if other.kind != "federated"]
        return f"{text} It {listed(said)}." if said else text
    rival = federated[0]
    name = rival.title if len(federated) == 1 else f"{rival.title}, the highest federated arm,"
    return f"{text} {name} {_against(r, rival, best)}."


def _against(r: Results, model: Model, other: Model) -> str:
    """What a sentence about ``model`` goes on with: how it differs from ``other`` at sites that took no part."""
    c = r.compare(model, other, MEAN)
    words = {
        "higher": "did clearly better than",
        "lower": "did clearly worse than",
        "unclear": "showed no clear difference from",
        "untested": "was not tested against",
    }[direction(c)]
    numbers = difference(model, c).removeprefix(model.title)
    return f"{words} {_called(other)}{numbers}"


def _called(model: Model) -> str:
    names = {
        "mean": "the average single-site model",
        "pooled": "training on pooled data",
        "best": "the best single-site model",
    }
    return names.get(model.kind, model.title)


def _compared(r: Results) -> list[Model]:
    """Arms that could be chosen for a new site, the highest first; the best local model could not."""
    return _ranked(r, [m for m in [*r.arms, *r.means] if m.kind != "own"], MEAN)


def _ranked(r: Results, models: Sequence[Model], scope: str) -> list[Model]:
    known = {m: v for m in models if (v := r.estimate(m, scope).value) is not None}
    return sorted(known, key=lambda m: -known[m])


def _arms(r: Results) -> Finding | None:
    models = _compared(r)
    if len(models) < 2:
        return None
    said = [f"{m.title} {with_interval(r.estimate(m, MEAN))}" for m in models]
    return Finding("All arms at a new site, highest first", f"{capital(shortened(said, 8))}.")


def _pooled(r: Results) -> Finding | None:
    pooled, federated = first(r.of_kind("pooled")), r.of_kind("federated")
    if pooled is None or not federated:
        return None
    text = f"One model trained on the other sites' pooled images reaches {with_interval(r.estimate(pooled, MEAN))}."
    return Finding("Federated or pooled data", f"{text} {against(r, federated, pooled, MEAN)}")


def _mean_local(r: Results) -> Finding | None:
    mean, federated = first(r.means), r.of_kind("federated")
    if mean is None or not federated:
        return None
    text = f"One site's own model, used at another site, averages {with_interval(r.estimate(mean, MEAN))}."
    return Finding("Federated or another site's model", f"{text} {against(r, federated, mean, MEAN)}")


def _best_local(r: Results) -> Finding | None:
    best, federated = first(r.bests), r.of_kind("federated")
    if best is None or not federated or not r.estimate(best, MEAN).known:
        return None
    text = (
        "The single-site model that turned out best at each held-out site, which nobody could have known beforehand, "
        f"reaches {with_interval(r.estimate(best, MEAN))}."
    )
    return Finding("Federated or the best single model", f"{text} {against(r, federated, best, MEAN)}")


def _by_site(r: Results) -> Finding | None:
    """Where federated arms are clearly above or below pooled data and the best single model, site by site."""
    federated = r.of_kind("federated")
    others = [m for m in (first(r.of_kind("pooled")), first(r.bests)) if m is not None]
    said = [_clear_sites(r, federated, other) for other in others] if federated else []
    for model in federated[:1]:
        scores = {s: v for s in r.held_out if (v := r.estimate(model, s).value) is not None}
        if len(scores) > 1:
            low, high = min(scores, key=lambda s: scores[s]), max(scores, key=lambda s: scores[s])
            ends = f"weakest at {low} ({score(scores[low])}) and strongest at {high} ({score(scores[high])})"
            said.append(f"{model.title} is {ends}.")
    return Finding("Site by site", " ".join(said)) if said else None


def _clear_sites(r: Results, federated: Sequence[Model], other: Model) -> str:
    clauses = []
    for key, words in (("higher", "clearly better than"), ("lower", "clearly worse than")):
        arms = {site: [m.title for m, _ in groups_of(r, federated, other, site)[key]] for site in r.held_out}
        where = [f"at {site} ({listed(titles)})" for site, titles in arms.items() if titles]
        if where:
            clauses.append(f"{words} {_called(other)} {listed(where)}")
    if not clauses:
        return f"At no single site do federated arms differ clearly from {_called(other)}."
    return f"Federated arms are {'; '.join(clauses)}."


def _drop(r: Results) -> Finding | None:
    """What a site loses by not taking part: the training sites' mean against the held-out sites' mean."""
    said = []
    for model in [m for m in r.arms if m.kind in ("federated", "pooled")][:4]:
        home, away = r.estimate(model, "mean_training").value, r.estimate(model, MEAN).value
        if home is not None and away is not None:
            said.append(f"{model.title} from {score(home)} to {score(away)}")
    if not said:
        return None
    text = f"From sites that trained (their test parts) to sites that did not (all images): {listed(said)}."
    own = first(r.of_kind("own"))
    if own is not None and r.estimate(own, "mean_training").known:
        text += f" A site's own model, at home: {with_interval(r.estimate(own, 'mean_training'))}."
    return Finding("What taking no part costs", text)
