"""The report's first words: what the numbers say about the study's questions, and no more than that.

A difference is called clear only where its interval leaves 0 out and its Holm-corrected p is below .05; every
other tested difference is "no clear difference", and one that nobody tested is said to be untested. Federated
arms are taken in the study's order, never picked by their test score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from morphfed.reporting.cautions import cautions
from morphfed.reporting.results import Comparison, Estimate, Model, Results
from morphfed.reporting.text import capital, counted, interval, listed, p_clause, score, shortened, signed

_DETAILED = 3
"""Arms up to which every one is given with its numbers."""


@dataclass(frozen=True)
class Finding:
    """One answer: ``topic`` is the question in a few words, ``text`` one or two sentences."""

    topic: str
    text: str


@dataclass(frozen=True)
class Summary:
    """What the report opens with.

    Attributes:
        headline: one sentence.
        findings: answers, in the order of the study's questions.
        cautions: what limits them; a sentence or two each.
    """

    headline: str
    findings: tuple[Finding, ...]
    cautions: tuple[str, ...]


def summarise(results: Results) -> Summary:
    """Words for a study's numbers."""
    makers = (_at_home, _elsewhere, _pooled, _held_out, _spread)
    findings = tuple(f for f in (make(results) for make in makers) if f is not None)
    return Summary(_headline(results), findings, tuple(cautions(results)))


# ── the questions ─────────────────────────────────────────────────────────────────────────────────────────
def _headline(r: Results) -> str:
    federated = r.of_kind("federated")
    if not federated:
        arms = listed(m.title for m in r.arms)
        return f"This run has no federated arm, so it does not say whether federation helps; it shows {arms}."
    own, pooled, single = (first(r.of_kind(kind)) for kind in ("own", "pooled", "mean"))
    sentences = []
    one = len(r.training) == 1
    at_home = [(own, "the site's own model" if one else "each site's own model"), (pooled, "pooled data")]
    questions = [("mean_training", "At the training site" if one else "At the training sites", at_home)]
    if r.held_out_scope:
        others = [(single, "the average single-site model"), (pooled, "pooled data")]
        questions.append((r.held_out_scope, _held_out_place(r), others))
    for scope, place, others in questions:
        said = [_verdict(r, federated, m, scope, what) for m, what in others if m is not None]
        if any(said):
            sentences.append(f"{place}, federated training {listed(filter(None, said))}")
    if not sentences:
        return "No difference between federated training and another arm was tested in this run."
    return "; ".join([sentences[0], *(s[0].lower() + s[1:] for s in sentences[1:])]) + "."


def _verdict(r: Results, federated: Sequence[Model], other: Model, scope: str, what: str) -> str:
    groups = groups_of(r, federated, other, scope)
    if len(groups["untested"]) == len(federated):
        return ""
    words = {
        "higher": "did better than",
        "lower": "did worse than",
        "unclear": "showed no clear difference from",
    }
    for key, phrase in words.items():
        if len(groups[key]) == len(federated):
            return f"{phrase} {what}"
    tally = {
        "higher": "better",
        "lower": "worse",
        "unclear": "with no clear difference",
        "untested": "not tested",
    }
    said = [f"{len(groups[key])} {word}" for key, word in tally.items() if groups[key]]
    return f"gave a mixed picture against {what} (of {len(federated)} arms, {listed(said)})"


def _at_home(r: Results) -> Finding | None:
    own, federated = first(r.of_kind("own")), r.of_kind("federated")
    if own is None or not federated:
        return None
    base = with_interval(r.estimate(own, "mean_training"))
    if len(r.training) == 1:
        text = f"The model that {r.training[0]} trained alone reaches {base} at home."
    else:
        n = len(r.training)
        text = f"A site's own model, tested at home, reaches {base} on average over the {n} training sites."
    return Finding("Each site alone, at home", f"{text} {against(r, federated, own, 'mean_training')}")


def _elsewhere(r: Results) -> Finding | None:
    pairs = [(m, s) for m in r.of_kind("single") for s in r.training if s != m.site]
    away = [value for m, s in pairs if (value := r.estimate(m, s).value) is not None]
    if not away:
        return None
    text = f"Away from home, at the other training sites, these models average {score(fmean(away))}"
    if len(away) > 1:
        text += f" (lowest {score(min(away))}, highest {score(max(away))} of {len(away)} pairs)"
    return Finding("Each site alone, elsewhere", f"{text}. {_against_mean(r, 'mean_training')}".strip())


def _against_mean(r: Results, scope: str) -> str:
    """Federated arms against what to expect of one single-site model; empty where that was not tested."""
    mean, federated = first(r.of_kind("mean")), r.of_kind("federated")
    if mean is None or all(direction(r.compare(m, mean, scope)) == "untested" for m in federated):
        return ""
    place = " over all training sites" if scope == "mean_training" else ""
    base = with_interval(r.estimate(mean, scope))
    return f"The average single-site model{place}: {base}. {against(r, federated, mean, scope)}"


def _pooled(r: Results) -> Finding | None:
    pooled, federated = first(r.of_kind("pooled")), r.of_kind("federated")
    if pooled is None or not federated:
        return None
    base = with_interval(r.estimate(pooled, "mean_training"))
    text = f"One model trained on all training images in one place reaches {base} at the training sites."
    return Finding("Pooled data", f"{text} {against(r, federated, pooled, 'mean_training')}")


def _held_out(r: Results) -> Finding | None:
    topic = "A site that took no part"
    scope, federated = r.held_out_scope, r.of_kind("federated")
    if scope is None:
        return Finding(topic, "No site was held out, so this run says nothing about a new site.")
    models = federated or r.of_kind("pooled")
    shown = models[:_DETAILED]
    text = f"{_held_out_place(r)}: {listed(f'{m.title} {with_interval(r.estimate(m, scope))}' for m in shown)}"
    rest = len(models) - len(shown)
    text += f" ({counted(rest, 'more arm')} in the table)." if rest else "."
    pooled = first(r.of_kind("pooled"))
    if pooled is not None and federated:
        base = with_interval(r.estimate(pooled, scope))
        text += f" Pooled data: {base}. {against(r, federated, pooled, scope)}"
    return Finding(topic, " ".join(f"{text} {_against_mean(r, scope)} {_best_single(r, scope)}".split()))


def _best_single(r: Results, scope: str) -> str:
    """The local model that does best at a new site: nobody knows beforehand which, but a reader must see it."""
    scores = {m: v for m in r.singles if (v := r.estimate(m, scope).value) is not None}
    if len(scores) < 2:
        return ""
    best = max(scores, key=lambda m: scores[m])
    reached = with_interval(r.estimate(best, scope))
    return f"The best of the {len(scores)} single-site models there, {best.site}'s, reached {reached}."


def _spread(r: Results) -> Finding | None:
    federated = r.of_kind("federated")
    said = []
    for model in [*federated[:1], *r.of_kind("pooled")[:1], *r.of_kind("own")[:1]]:
        scores = {s: v for s in r.training if (v := r.estimate(model, s).value) is not None}
        if len(scores) < 2:
            continue
        worst, best = min(scores, key=lambda s: scores[s]), max(scores, key=lambda s: scores[s])
        if score(scores[worst]) == score(scores[best]):
            said.append(f"with {model.title} every site scores {score(scores[worst])}")
            continue
        gap = r.estimate(model, "gap_training")
        gap = gap if gap.known else Estimate(scores[best] - scores[worst])
        limits = interval(gap.low, gap.high)
        shown = f"{score(gap.value)}, {limits}" if limits else score(gap.value)
        said.append(f"with {model.title} it is {worst} ({score(scores[worst])}; gap to the best, {best}: {shown})")
    if not said:
        return None
    note = f" {federated[0].title} is the study's first federated arm." if len(federated) > 1 else ""
    return Finding("Worst training site", f"The lowest score: {'; '.join(said)}.{note}")


# ── clauses ───────────────────────────────────────────────────────────────────────────────────────────────
_Group = list[tuple[Model, Comparison | None]]


def groups_of(r: Results, models: Sequence[Model], other: Model, scope: str) -> dict[str, _Group]:
    """``models`` by what may be said of them against ``other``: higher, lower, unclear, untested."""
    groups: dict[str, _Group] = {"higher": [], "lower": [], "unclear": [], "untested": []}
    for model in models:
        c = r.compare(model, other, scope)
        groups[direction(c)].append((model, c))
    return groups


def direction(comparison: Comparison | None) -> str:
    """``higher``, ``lower``, ``unclear`` or ``untested``: what may be said of ``a`` against ``b``."""
    if comparison is None or not comparison.tested:
        return "untested"
    if not comparison.clear:
        return "unclear"
    return "higher" if (comparison.difference or 0.0) > 0 else "lower"


def against(r: Results, models: Sequence[Model], other: Model, scope: str) -> str:
    """One sentence: what is said of every federated arm against ``other``."""
    groups = groups_of(r, models, other, scope)
    clauses = []
    for key, words in (("higher", "scored clearly higher"), ("lower", "scored clearly lower")):
        if groups[key]:
            clauses.append(f"{listed(difference(m, c) for m, c in groups[key])} {words}")
    if groups["unclear"]:
        detailed = len(models) <= _DETAILED
        names = [difference(m, c) if detailed else m.title for m, c in groups["unclear"]]
        clauses.append(f"no clear difference for {shortened(names, 6)}")
    if groups["untested"]:
        clauses.append(f"the difference was not tested for {shortened([m.title for m, _ in groups['untested']], 6)}")
    return capital("; ".join(clauses)) + "."


def difference(model: Model, c: Comparison | None) -> str:
    """``FedAvg (+0.030, 0.012 to 0.048)``."""
    if c is None:
        return model.title
    limits = f"{signed(c.difference)}, {interval(c.low, c.high)}"
    leaves_out_zero = c.low is not None and c.high is not None and (c.low > 0 or c.high < 0)
    if leaves_out_zero and not c.clear:  # the interval alone would say otherwise
        limits += f", but Holm {p_clause(c.p_holm)}"
    return f"{model.title} ({limits})"


def with_interval(estimate: Estimate) -> str:
    """``0.712 (0.680 to 0.744)``."""
    if not estimate.known:
        return "(not available)"
    limits = interval(estimate.low, estimate.high)
    return f"{score(estimate.value)} ({limits or 'no interval'})"


def _held_out_place(r: Results) -> str:
    if len(r.held_out) == 1:
        return f"At {r.held_out[0]}, which took no part in training"
    return f"At the {len(r.held_out)} held-out sites (mean), which took no part in training"


def first(models: Sequence[Model]) -> Model | None:
    """The first of some models, in the study's order."""
    return models[0] if models else None
