"""results.json: every finished unit judged at every site, summarised, compared (docs/reference/results.md)."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.files import read_json
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.evaluation.compare import (
    Scores,
    UnitPredictions,
    compare_pairs,
    cross_site_matrix,
    default_pairs,
    summarise,
)
from morphfed.evaluation.options import OPTIONS, gains
from morphfed.evaluation.predictions import Predictions, read_predictions
from morphfed.evaluation.retrogress import summarise_retrogress
from morphfed.evaluation.site import Role, adaptation, calibration_error, evaluate_site
from morphfed.evaluation.unknown import judge_strangers, read_strangers
from morphfed.experiment.environment import describe
from morphfed.experiment.train_unit import ADAPTED, ONE_VIEW, STRANGERS, is_done, read_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.resolve import Resolved
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit
    from morphfed.training.dataset import ImageSet

SCHEMA = 1
PREDICTIONS = "predictions.parquet"
SAMPLES_PER_CLASS = 2
_Pair = tuple[UnitPredictions, UnitPredictions]
"""One unit with an option of the judging and without it."""
PRIMARY = "balanced_accuracy"


def build_results(
    resolved: Resolved,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    *,
    report: Reporter = silent,
) -> tuple[dict[str, Any], Scores]:
    """Judge all finished units.

    Args:
        failed: units that could not be trained → why; they are listed, and their arms have fewer seeds.

    Returns:
        The content of results.json, and the scores that its summary and comparisons were read from.
    """
    study = resolved.study
    done = [unit for unit in units if is_done(unit, run)]
    roles: dict[str, Role] = {site: block["role"] for site, block in prepared.info.items()}
    entries, predicted = [], []
    versions: dict[str, list[_Pair]] = {name: [] for name in OPTIONS}
    for number, unit in enumerate(done):
        report(Event("evaluate", number, len(done), f"judging {unit.key}"))
        raw = _read(unit, run, PREDICTIONS, prepared)
        entry = read_unit(unit, run)
        temperature = entry.get("calibration", {}).get("temperature")
        found = {site: p.tempered(temperature or 1.0) for site, p in raw.items()}
        entry["sites"] = _judge(unit, found, roles, prepared, resolved)
        entries.append(entry)
        predicted.append(_predicted(unit, entry, found, roles))
        adapted = {site: p.tempered(temperature or 1.0) for site, p in _adapted(unit, run, roles).items()}
        one_view = _read(unit, run, ONE_VIEW, prepared)
        _judge_options(entry, raw, found, adapted, unit.folder(run), study)
        for name, (treated, plain) in _versions(raw, found, temperature, adapted, one_view).items():
            versions[name].append((_predicted(unit, entry, treated, roles), _predicted(unit, entry, plain, roles)))
    report(Event("evaluate", len(done), len(done), "comparing arms"))
    scores = Scores(predicted, resamples=study.evaluation.resamples, seed=0)
    saved = read_json(run / "config.json")
    results = {
        "schema": SCHEMA,
        "study": describe_study(resolved, saved),
        "data": describe_data(prepared, resolved, run),
        "arms": entries,
        "failed": [{"unit": name, "reason": why} for name, why in failed.items()],
        "summary": summarise(scores),
        "cross_site": cross_site_matrix(scores, metric=PRIMARY),
        "comparisons": compare_pairs(scores, default_pairs(predicted)),
        "options": _gains(versions, study.evaluation.resamples),
        **retrogress_block(entries, study.training_sites, prepared),
        "environment": {**describe(), "threads": resolved.threads, "jobs": resolved.jobs},
        "config": resolved.as_dict(),
    }
    return results, scores


def _read(unit: Unit, run: Path, name: str, prepared: Prepared) -> dict[str, Predictions]:
    """Predictions of a unit, of the images that are test images in this study; {} without such a file."""
    path = unit.folder(run) / name
    if name != PREDICTIONS and not path.is_file():
        return {}
    found = read_predictions(path)
    if unit.shared:
        return {site: p.only(prepared.sets[site]["test"].ids.astype(str)) for site, p in found.items()}
    return found


def _predicted(
    unit: Unit, entry: Mapping[str, Any], found: Mapping[str, Predictions], roles: Mapping[str, Role]
) -> UnitPredictions:
    return UnitPredictions(unit.arm, unit.model, entry["algorithm"], unit.seed, unit.trained_on, found, roles)


def _versions(
    raw: Mapping[str, Predictions],
    found: Mapping[str, Predictions],
    temperature: float | None,
    adapted: Mapping[str, Predictions],
    one_view: Mapping[str, Predictions],
) -> dict[str, tuple[Mapping[str, Predictions], Mapping[str, Predictions]]]:
    """Option → what the unit said with it and without it, of the same images; only options that the study asked for."""
    pairs = {}
    if one_view:
        pairs["views"] = (raw, one_view)
    if temperature is not None:
        pairs["calibrate"] = (found, raw)
    if adapted:
        pairs["adapt"] = (adapted, {site: found[site] for site in adapted})
    return pairs


def _gains(versions: Mapping[str, Sequence[_Pair]], resamples: int) -> list[dict[str, Any]]:
    found = []
    for name, pairs in versions.items():
        treated, plain = [with_it for with_it, _ in pairs], [without for _, without in pairs]
        found += gains(name, treated, plain, OPTIONS[name], resamples=resamples)
    return found


def retrogress_block(
    entries: Iterable[Mapping[str, Any]], sites: Sequence[str], prepared: Prepared
) -> dict[str, list[dict[str, Any]]]:
    """The ``retrogress`` block; {} where no site judged the models that it had trained.

    Args:
        entries: units with their history.
        sites: training sites.
    """
    found = summarise_retrogress(entries, sites, {site: len(prepared.sets[site]["validation"]) for site in sites})
    return {"retrogress": found} if found else {}


def describe_study(resolved: Resolved, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The ``study`` block.

    Args:
        saved: the run's config.json.
    """
    study = resolved.study
    return {
        "name": study.name,
        "title": study.title or study.name,
        "task": "classification",
        "classes": list(study.classes),
        "seeds": list(study.seeds),
        "training_sites": study.training_sites,
        "held_out": list(study.held_out),
        "arms": list(study.arms),
        "created": saved["created"],
        "seconds": saved["seconds"],
        "primary_metric": PRIMARY,
    }


def describe_data(prepared: Prepared, resolved: Resolved, run: Path) -> dict[str, Any]:
    """The ``data`` block."""
    return {"sites": _sites(prepared, resolved), "notes": prepared.notes, "check": _check(run)}


def _judge(
    unit: Unit,
    found: Mapping[str, Predictions],
    roles: Mapping[str, Role],
    prepared: Prepared,
    resolved: Resolved,
) -> dict[str, Any]:
    study = resolved.study
    judged = {}
    for site, predictions in found.items():
        block = evaluate_site(predictions, role=roles[site], resamples=study.evaluation.resamples, seed=0)
        # Pictures of mistakes are shown for the first seed: the others make much the same ones.
        if study.evaluation.images and unit.seed == study.seeds[0]:
            _add_images(block["errors"], prepared.sets[site]["test"])
        judged[site] = block
    return judged


def _judge_options(
    entry: Mapping[str, Any],
    raw: Mapping[str, Predictions],
    found: Mapping[str, Predictions],
    adapted: Mapping[str, Predictions],
    folder: Path,
    study: Study,
) -> None:
    """Add to the sites' blocks what only some studies ask for: before calibration, after adaptation, unknown cells.

    Args:
        raw: as the model said it.
        found: the same at the unit's temperature.
        adapted: at held-out sites after adaptation, at that temperature too.
        folder: the unit's.
    """
    resamples, sites = study.evaluation.resamples, entry["sites"]
    temperature = entry.get("calibration", {}).get("temperature", 1.0)
    if "calibration" in entry:
        for site, p in raw.items():
            sites[site]["uncalibrated"] = {"ece": calibration_error(p, resamples=resamples)}
    how = study.evaluation.adapt
    for site, p in adapted.items():
        sites[site]["adapted"] = adaptation(found[site], p, how=how, metric=PRIMARY, resamples=resamples)
    if "rejection" in entry:
        strangers = read_strangers(folder / STRANGERS)
        for site, known in found.items():
            met = strangers[site].tempered(temperature) if site in strangers else None
            threshold = entry["rejection"]["threshold"]
            sites[site]["unknown"] = judge_strangers(known, met, threshold, resamples=resamples)


def _adapted(unit: Unit, run: Path, roles: Mapping[str, Role]) -> dict[str, Predictions]:
    """Predictions of the model adapted to each held-out site; none where nothing was adapted."""
    path = unit.folder(run) / ADAPTED
    if not path.is_file():
        return {}
    # A local model that folds share was adapted to every other site; in this fold only some are held out.
    return {site: p for site, p in read_predictions(path).items() if roles[site] == "held_out"}


def _add_images(errors: Sequence[dict[str, Any]], data: ImageSet) -> None:
    where = {str(name): i for i, name in enumerate(data.ids)}
    for error in errors:
        error["image"] = data_uri(data.store.gather(data.rows[[where[error["path"]]]])[0])


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture ``(H, W, 3)`` as a JPEG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sites(prepared: Prepared, resolved: Resolved) -> dict[str, Any]:
    blocks = {}
    for site, block in prepared.info.items():
        parts = [part for part in prepared.sets[site].values() if len(part)]
        blocks[site] = {**block, "colour": _colour(parts)}
        blocks[site]["samples"] = _samples(site, parts, resolved) if resolved.study.evaluation.images else []
    return blocks


def _samples(site: str, parts: Sequence[ImageSet], resolved: Resolved) -> list[dict[str, str]]:
    """A few of the site's pictures of each class, as the model sees them."""
    found = []
    rows = np.concatenate([p.rows for p in parts])
    labels = np.concatenate([p.labels for p in parts])
    for index, name in enumerate(resolved.study.classes):
        here = rows[labels == index]
        chosen = numpy_stream(0, "samples", site, name).permutation(len(here))[:SAMPLES_PER_CLASS]
        for row in here[np.sort(chosen)]:
            found.append({"class": name, "image": data_uri(parts[0].store.gather(np.array([row]))[0])})
    return found


def _colour(parts: Sequence[ImageSet]) -> dict[str, list[float]]:
    """Mean and sd of R, G and B in [0, 1] over at most 200 pictures of a site."""
    rows = np.concatenate([p.rows for p in parts])
    rows = rows[np.sort(numpy_stream(0, "colour").permutation(len(rows))[:200])]
    pixels = parts[0].store.gather(rows).reshape(-1, 3).astype(np.float64) / 255.0
    return {"mean": pixels.mean(axis=0).tolist(), "sd": pixels.std(axis=0).tolist()}


def _check(run: Path) -> dict[str, Any]:
    path = run / "check.json"
    if not path.is_file():
        return {"status": "not run", "findings": []}
    found: dict[str, Any] = read_json(path)
    return found
