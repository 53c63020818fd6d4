"""What a reader must know before believing the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from morphfed.reporting.results import SMALL_CLASS, Model, Results
from morphfed.reporting.text import counted, listed, plain, score, shortened


def cautions(r: Results) -> list[str]:
    """What limits the numbers: a sentence or two each, the gravest first."""
    if r.folds:
        return [text for text in (make(r) for make in _OF_FOLDS) if text]
    makers = (
        _missing,
        _not_told,
        _chance,
        _single_seed,
        _leaky,
        _by_image,
        _by_lesion,
        _no_interval,
        _small,
        _median,
        _masked,
        _missed,
        _absent_structures,
        _estimated_scale,
        _rejected,
        _check,
    )
    return [text for text in (make(r) for make in makers) if text]


def _missing(r: Results) -> str:
    if not r.missing:
        return ""
    names = shortened([name for name, _ in r.missing], 4)
    verb = "has" if len(r.missing) == 1 else "have"
    return (
        f"{len(r.missing)} of the {r.planned} planned training runs {verb} no results ({names}); means are over "
        "the seeds that finished."
    )


def _not_told(r: Results) -> str:
    """Sites of a federation over a network that have not judged every model."""
    gaps = (r.raw.get("network") or {}).get("missing") or ()
    if not gaps:
        return ""
    units: dict[str, int] = {}
    for gap in gaps:
        units[str(gap["site"])] = units.get(str(gap["site"]), 0) + 1
    said = listed(f"{site} ({counted(n, 'model')})" for site, n in units.items())
    return f"Scores are missing, because they were not told: {said}. Means over sites leave out models that lack one."


def _chance(r: Results) -> str:
    """Arms that are no better than naming one class always; only balanced accuracy has a known level for that."""
    present = [next((len(t["classes_present"]) for u in r.units if (t := _test(u, s))), 0) for s in r.training]
    if r.metric != "balanced_accuracy" or not all(present) or not present:
        return ""
    level = fmean(1 / n for n in present)
    lost = []
    for model in r.arms:
        e = r.estimate(model, "mean_training")
        reached = e.value if e.low is None else e.low
        if reached is not None and reached <= level + 1e-9:
            lost.append(model.title)
    if not lost:
        return ""
    return (
        f"Naming one class always gives {score(level)}; not clearly above that over the training sites: "
        f"{listed(lost)}. Differences between arms that hardly learned mean little."
    )


def _test(unit: Mapping[str, Any], site: str) -> Mapping[str, Any]:
    test = (unit.get("sites") or {}).get(site) or {}
    return test if test.get("classes_present") else {}


def _single_seed(r: Results) -> str:
    if len(r.seeds) != 1:
        return ""
    return "Every arm was trained with one seed, so nothing is known about the spread between training runs."


def _by_image(r: Results) -> str:
    sites = [s for s in r.all_sites if r.patient_unit(s) in ("image", "bag")]
    if not sites:
        return ""
    every = "any site" if len(sites) == len(r.all_sites) and len(sites) > 1 else shortened(sites, 6)
    return (
        f"Patient ids are unknown at {every}: intervals there resample images. Images of one patient resemble each "
        "other, so these intervals may be too narrow."
    )


def _by_lesion(r: Results) -> str:
    sites = [s for s in r.all_sites if r.patient_unit(s) == "lesion"]
    if not sites:
        return ""
    return (
        f"Lesions but no patients are known at {shortened(sites, 6)}: parts and intervals there keep the images of a "
        "lesion together, but not the lesions of a patient."
    )


def _leaky(r: Results) -> str:
    """Splits that were given from outside and have the same patients or lesions on both sides."""
    found = []
    for site in r.training:
        for leak in r.sites.get(site, {}).get("leaks") or ():
            if leak.get("part") == "test":
                what = counted(int(leak["owners"]), str(leak["kind"]))
                found.append(f"{int(leak['seen']):,} of {int(leak['images']):,} at {site} ({what})")
    if not found:
        return ""
    return (
        "The split was given and leaks: test images that show a patient, lesion or slide which is also among the "
        f"training images: {listed(found)}. Scores there are too high; let the data be split again to see by how much."
    )


def _no_interval(r: Results) -> str:
    lacking = []
    for site in r.all_sites:
        found = [r.estimate(m, site) for m in r.judged_at(site)]
        if any(e.known and (e.low is None or e.high is None) for e in found):
            lacking.append(site)
    return f"No interval could be computed for every arm at {shortened(lacking, 6)}." if lacking else ""


def small_classes(r: Results) -> list[tuple[str, str, int]]:
    """Classes with 1 to ``SMALL_CLASS − 1`` test images: site, class, images; smallest first."""
    found = []
    for site in r.all_sites:
        counts = {c: _tested_images(r, v) for c, v in (r.sites.get(site, {}).get("classes") or {}).items()}
        if not counts:
            counts = _tested_counts(r, site)
        found += [(site, c, n) for c, n in counts.items() if c in r.classes and 0 < n < SMALL_CLASS]
    return sorted(found, key=lambda f: f[2])


def _tested_images(r: Results, parts: Mapping[str, Any]) -> int:
    """Test images of a class at a site: all of them where the site is held out in turn."""
    return sum(int(parts.get(p) or 0) for p in (("train", "validation", "test") if r.folds else ("test",)))


def _tested_counts(r: Results, site: str) -> dict[str, int]:
    for unit in r.units:
        per_class = unit.get("sites", {}).get(site, {}).get("per_class")
        if per_class:
            return {c: int(v.get("n") or 0) for c, v in per_class.items()}
    return {}


def _small(r: Results) -> str:
    found = small_classes(r)
    if not found:
        return ""
    cases = shortened([f"{plain(c)} at {s} ({n})" for s, c, n in found], 5)
    return (
        f"Fewer than {SMALL_CLASS} test images: {cases}. A recall from so few is uncertain, and so is a mean that "
        "includes it."
    )


def _median(r: Results) -> str:
    medians = {m.title: m for m in r.of_kind("federated") if _is_median(r, m)}
    two = [t for t, m in medians.items() if any(len(u.get("trained_on") or ()) == 2 for u in r.units_of(m))]
    if not two:
        return ""
    return (
        f"With two training sites a coordinate-wise median equals the unweighted mean: here, {listed(two)} is "
        "averaging with equal site weights."
    )


def _is_median(r: Results, model: Model) -> bool:
    named = {str(u.get("algorithm", "")) for u in r.units_of(model)} | {model.arm}
    return any("median" in name.lower() for name in named)


def _masked(r: Results) -> str:
    sites = [s for s in r.all_sites if any(t.get("masked") for m in r.judged_at(s) for t in r.tests_of(m, s))]
    if not sites:
        return ""
    return (
        f"Some of the study's classes are absent at {shortened(sites, 6)}. The scores let a model predict any "
        "class of the study; scores masked to the classes present are given beside them."
    )


def _missed(r: Results) -> str:
    """Test images in which an arm drew nothing of a structure that they show: a mean distance leaves them out."""
    found = []
    for site in r.all_sites:
        for model in r.judged_at(site):
            for name in r.structures:
                blocks = [b for t in r.tests_of(model, site) if (b := (t.get("structures") or {}).get(name))]
                n = max((int(b.get("missed") or 0) for b in blocks), default=0)
                found += [f"{plain(name)} at {site} by {model.title} ({n} images)"] if n else []
    if not found:
        return ""
    return (
        f"Missed altogether: {shortened(found, 4)}. Mean distances leave such images out; Dice and IoU count them as 0."
    )


def _absent_structures(r: Results) -> str:
    lacking = []
    for site in r.all_sites:
        counts = r.sites.get(site, {}).get("structures") or {}
        absent = [plain(name) for name, parts in counts.items() if not _tested_images(r, parts)]
        lacking += [f"{listed(absent)} at {site}"] if absent else []
    return (
        f"No test image shows {shortened(lacking, 6)}: nothing is known of how well it would be found."
        if lacking
        else ""
    )


def _estimated_scale(r: Results) -> str:
    sites = [s for s in r.all_sites if r.structures and r.sites.get(s, {}).get("scale_from") == "nucleus"]
    if not sites:
        return ""
    return f"Distances in µm at {shortened(sites, 6)} rest on a scale that was estimated from the size of nuclei."


def _rejected(r: Results) -> str:
    n = sum(len(u.get("rejected") or ()) for u in r.units)
    return f"{counted(n, 'upload')} of a site {'was' if n == 1 else 'were'} rejected during training." if n else ""


def _check(r: Results) -> str:
    findings = (r.data.get("check") or {}).get("findings") or []
    counts = {level: sum(1 for f in findings if f.get("level") == level) for level in ("error", "warning")}
    said = listed(counted(n, level) for level, n in counts.items() if n)
    return f"The data check left {said}." if said else ""


# ── a study that holds out every site in turn ─────────────────────────────────────────────────────────────
def _of_these_sites(r: Results) -> str:
    return (
        f"The intervals hold for other images of these {len(r.held_out)} sites, not for other hospitals: "
        f"{len(r.held_out)} sites say little about how much hospitals differ. The folds share training sites, so their "
        "results are not independent of each other."
    )


def _picked(r: Results) -> str:
    joint = [m for m in r.arms if m.kind != "own"]
    if len(joint) < 2:
        return ""
    return "The highest arm is picked by the score that is shown, so its own score is on the high side."


def _alone(r: Results) -> str:
    if len(r.held_out) > 2:
        return ""
    return "With two sites one trains alone in every fold, so federated and pooled arms are that site's own model."


def _absent_classes(r: Results) -> str:
    lacking = []
    for site in r.held_out:
        counts = {c: _tested_images(r, v) for c, v in (r.sites.get(site, {}).get("classes") or {}).items()}
        absent = [plain(c) for c, n in counts.items() if c in r.classes and not n]
        lacking += [f"{listed(absent)} at {site}"] if absent else []
    if not lacking:
        return ""
    return (
        f"Some of the study's classes are absent ({shortened(lacking, 6)}). A score is over the classes present, and a "
        "model may predict any class of the study; scores masked to the classes present are in the folds' reports."
    )


def _chance_away(r: Results) -> str:
    """Arms that are no better, at sites that took no part, than naming one class always."""
    present = [
        sum(_tested_images(r, v) > 0 for c, v in (r.sites.get(s, {}).get("classes") or {}).items() if c in r.classes)
        for s in r.held_out
    ]
    if r.metric != "balanced_accuracy" or not all(present) or not present:
        return ""
    level = fmean(1 / n for n in present)
    lost = []
    for model in [*r.arms, *r.means]:
        e = r.estimate(model, "mean_held_out")
        reached = e.value if e.low is None else e.low
        if reached is not None and reached <= level + 1e-9:
            lost.append(model.title)
    if not lost:
        return ""
    return (
        f"Naming one class always gives {score(level)}; not clearly above that at held-out sites: {listed(lost)}. "
        "Differences between arms that hardly learned mean little."
    )


_OF_FOLDS = (
    _missing,
    _chance_away,
    _of_these_sites,
    _picked,
    _alone,
    _single_seed,
    _by_image,
    _by_lesion,
    _small,
    _absent_classes,
    _median,
    _rejected,
    _check,
)
