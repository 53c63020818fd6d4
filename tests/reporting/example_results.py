"""A results.json made up from simulated predictions, after docs/reference/results.md."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from morphfed.core.seeding import numpy_stream
from morphfed.data.synthetic.render import render_cell
from morphfed.data.synthetic.sites import SyntheticSite
from morphfed.evaluation.retrogress import summarise_retrogress

FIVE = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
ALGORITHMS = {"local": "local", "centralised": "centralised", "fedmedian": "fedmedian", "fedprox": "fedprox"}
SKILL = {"centralised": 0.30, "fedavg": 0.10, "fedprox": 0.12, "fedbn": 0.16, "fedmedian": 0.02}
METRICS = ("balanced_accuracy", "macro_f1", "accuracy", "auroc", "ece", "aurc")


@cache
def picture(kind: str, site: str, number: int, size: int = 64) -> str:
    """A synthetic cell as a data address."""
    rng = numpy_stream(number, "picture", kind, site)
    stain = 0.75 + 0.5 * numpy_stream(0, "stain", site).random()
    pixels = render_cell(kind, SyntheticSite(name="x", strength=stain, image_px=size, um_per_px=25 / size), rng)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def drawn(kind: str, classes: tuple[str, ...]) -> str:
    return kind if kind in FIVE else FIVE[classes.index(kind) % 5]


def measure(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    weights = np.ones(len(truth)) if weights is None else weights
    classes = probabilities.shape[1]
    guess, surest = probabilities.argmax(1), probabilities.max(1)
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, guess), weights)
    rows, columns, right = table.sum(1), table.sum(0), np.diag(table)
    present = rows > 0
    recall = right[present] / rows[present]
    f1 = 2 * right[present] / (rows[present] + columns[present])
    bins = np.minimum((surest * 15).astype(int), 14)
    gaps = [abs(((guess == truth) - surest)[bins == b] @ weights[bins == b]) for b in range(15)]
    order = np.argsort(-surest, kind="stable")
    wrong = np.cumsum(((guess != truth) * weights)[order]) / np.maximum(np.cumsum(weights[order]), 1e-9)
    return {
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "accuracy": float(right.sum() / table.sum()),
        "auroc": float(np.mean([_auroc(truth == c, probabilities[:, c]) for c in np.flatnonzero(present)])),
        "ece": float(sum(gaps) / weights.sum()),
        "aurc": float(np.average(wrong, weights=weights[order])),
    }


def _auroc(positive: np.ndarray, values: np.ndarray) -> float:
    a, b = positive.sum(), (~positive).sum()
    if not a or not b:
        return 0.5
    ranks = np.empty(len(values))
    ranks[np.argsort(values)] = np.arange(1, len(values) + 1)
    return float((ranks[positive].sum() - a * (a + 1) / 2) / (a * b))


def limits(values: list[float] | np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def test_images(site: str, classes: tuple[str, ...], n: int, held_out: bool) -> np.ndarray:
    """Truth of a site's test part, unevenly spread; a held-out site lacks the last of many classes."""
    rng = numpy_stream(0, "truth", site)
    kinds = len(classes) - (1 if held_out and len(classes) > 2 else 0)
    share = rng.dirichlet(np.full(kinds, 3.0))
    return np.sort(np.concatenate([np.arange(kinds), rng.choice(kinds, n - kinds, p=share)]))


def simulate(truth: np.ndarray, classes: int, skill: float, *names: str | int) -> np.ndarray:
    """Probabilities of a model: part of its error belongs to the image, so that models err together."""
    rng, image = numpy_stream(0, "model", *names), numpy_stream(0, "image", names[-1])
    logits = 0.9 * rng.normal(size=(len(truth), classes)) + 1.1 * image.normal(size=(len(truth), classes))
    logits[np.arange(len(truth)), truth] += 1.2 + 4.0 * skill
    return np.exp(1.3 * logits) / np.exp(1.3 * logits).sum(1, keepdims=True)


def site_block(
    role: str,
    site: str,
    truth: np.ndarray,
    p: np.ndarray,
    classes: tuple[str, ...],
    draws: np.ndarray,
    models_images: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    point = measure(truth, p)
    replicates = [measure(truth, p, w) for w in draws]
    spread = {m: np.array([r[m] for r in replicates]) for m in METRICS}
    guess, surest = p.argmax(1), p.max(1)
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (truth, guess), 1)
    per_class = {}
    for i in np.unique(truth):
        n, right, called = int(table[i].sum()), int(table[i, i]), int(table[:, i].sum())
        share = right / n
        half = 1.96 * (share * (1 - share) / n + 1 / (4 * n * n)) ** 0.5
        per_class[classes[i]] = {
            "n": n,
            "recall": share,
            "low": max(0.0, share - half),
            "high": min(1.0, share + half),
            "precision": right / called if called else None,
            "f1": 2 * right / (n + called) if called else 0.0,
            "auroc": _auroc(truth == i, p[:, i]),
        }
    bins = np.minimum((surest * 15).astype(int), 14)
    wrong = [int(i) for i in np.argsort(-surest) if guess[i] != truth[i]][:models_images]
    present = np.unique(truth)
    masked = np.where(np.isin(np.arange(len(classes)), present), p, -1.0)
    order = np.argsort(-surest, kind="stable")
    few = [classes[i] for i in present if (truth == i).sum() < 10]
    risk = np.cumsum((guess != truth)[order]) / np.arange(1, len(truth) + 1)
    shown = np.unique(np.linspace(0, len(truth) - 1, 20).astype(int))
    block = {
        "role": role,
        "n": len(truth),
        "clusters": len(truth),
        "cluster_unit": "image",
        "classes_present": [classes[i] for i in present],
        "metrics": {
            m: {"value": point[m], **dict(zip(("low", "high"), limits(spread[m]), strict=True))} for m in METRICS
        },
        "masked": None
        if len(present) == len(classes)
        else {
            "metrics": {
                m: {"value": v, "low": max(0, v - 0.08), "high": min(1, v + 0.06)}
                for m, v in {
                    k: measure(truth, masked)[k] for k in ("balanced_accuracy", "macro_f1", "accuracy")
                }.items()
            }
        },
        "per_class": per_class,
        "confusion": table.tolist(),
        "calibration": [
            {
                "confidence": float(surest[bins == b].mean()),
                "n": int((bins == b).sum()),
                "accuracy": float((guess == truth)[bins == b].mean()),
            }
            for b in range(15)
            if (bins == b).any()
        ],
        "risk_coverage": [{"coverage": float((i + 1) / len(truth)), "risk": float(risk[i])} for i in shown],
        "notes": [f"Fewer than 10 test images of {c}: …" for c in few[:1]],
        "errors": [
            {
                "path": f"{site}/{classes[truth[i]]}/{i:05d}.jpg",
                "truth": classes[truth[i]],
                "predicted": classes[guess[i]],
                "confidence": float(surest[i]),
                "image": picture(drawn(classes[truth[i]], classes), site, i),
            }
            for i in wrong
        ],
    }
    return block, spread


def history(sites: list[str], skill: float, rounds: int, pooled: bool, *names: str | int) -> list[dict[str, Any]]:
    rng = numpy_stream(0, "history", *names)
    found = []
    for r in range(1, rounds + 1):
        at = 1 - np.exp(-r / 2.5)
        block: dict[str, Any] = {"pooled": {"loss": 1.6 * np.exp(-r / 3) + 0.1, "steps": 400}} if pooled else {}
        for site in sites:
            value = float(np.clip((0.3 + 0.5 * skill) * at + 0.3 + rng.normal(0, 0.02), 0, 1))
            block[site] = {} if pooled else {"loss": float(1.6 * np.exp(-r / 3) + rng.random() * 0.1), "steps": 130}
            block[site]["validation"] = {
                "balanced_accuracy": value,
                "macro_f1": value - 0.03,
                "loss": 1.5 - value,
            }
        found.append({"round": r, "seconds": 4.0 + float(rng.random()), "sites": block})
    return found


def example_results(
    *,
    training: tuple[str, ...] = ("barcelona", "tecom", "bccd"),
    held_out: tuple[str, ...] = ("cellavision",),
    classes: tuple[str, ...] = FIVE,
    arms: tuple[str, ...] = ("local", "centralised", "fedavg", "fedprox", "fedbn", "fedmedian"),
    seeds: tuple[int, ...] = (0, 1, 2),
    n: tuple[int, ...] = (300, 90, 110, 60),
    rounds: int = 8,
    errors: int = 8,
    resamples: int = 200,
) -> dict[str, Any]:
    """Results of a study that never was."""
    sites = [*training, *held_out]
    truth = {s: test_images(s, classes, n[i % len(n)], s in held_out) for i, s in enumerate(sites)}
    draws = {
        s: numpy_stream(0, "boot", s).multinomial(len(t), np.full(len(t), 1 / len(t)), resamples).astype(float)
        for s, t in truth.items()
    }
    easy = {s: 0.62 * float(numpy_stream(0, "easy", s).random()) for s in sites}
    units: list[dict[str, Any]] = []
    spread: dict[tuple[str, str, str], list[np.ndarray]] = {}
    points: dict[tuple[str, str, str], list[float]] = {}
    for arm in arms:
        for model in [f"{arm}/{s}" for s in training] if arm == "local" else [arm]:
            home = model.partition("/")[2]
            for seed in seeds:
                blocks = {}
                for s in sites:
                    skill = easy[s] + SKILL.get(arm, 0.0) + (0.05 if s == home else -0.25 if home else 0.0)
                    p = simulate(truth[s], len(classes), skill, model, seed, s)
                    role = "held_out" if s in held_out else "train"
                    blocks[s], found = site_block(role, s, truth[s], p, classes, draws[s], errors)
                    for m in METRICS:
                        spread.setdefault((model, s, m), []).append(found[m])
                        points.setdefault((model, s, m), []).append(blocks[s]["metrics"][m]["value"])
                moves = arm not in ("local", "centralised")
                trained = [home] if home else list(training)
                passes = sum(3 * len(truth[s]) for s in trained) * rounds
                units.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "model": model,
                        "algorithm": arm,
                        "trained_on": trained,
                        "rounds": rounds,
                        "best_round": rounds - seed % 3,
                        "selected": "best",
                        "steps": passes // 16,
                        "images_seen": passes,
                        "seconds": 41.0 + 3 * seed + len(trained) * 9,
                        "bytes_up": moves * 2_900_000 * rounds * len(trained),
                        "bytes_down": moves * 2_900_000 * rounds * len(trained),
                        "parameters": 725_061,
                        "history": history(
                            trained, easy[trained[0]] + SKILL.get(arm, 0), rounds, arm == "centralised", model, seed
                        ),
                        "rejected": [],
                        "warnings": [],
                        "sites": blocks,
                    }
                )
    table = _combine(points, spread, arms, training, held_out)
    return {
        "schema": 1,
        "study": {
            "name": "four-labs",
            "title": "Four laboratories, five kinds of white blood cell",
            "task": "classification",
            "classes": list(classes),
            "seeds": list(seeds),
            "training_sites": list(training),
            "held_out": list(held_out),
            "arms": list(arms),
            "created": "2026-11-20T20:00:00+00:00",
            "seconds": 1234.5,
            "primary_metric": "balanced_accuracy",
        },
        "data": {
            "sites": {s: _data(s, s in held_out, truth[s], classes) for s in sites},
            "notes": [f"{s}: split by image" for s in sites],
            "check": _check(sites),
        },
        "arms": units,
        "failed": [],
        "summary": [
            {
                "model": k[0],
                "arm": k[0].partition("/")[0].partition(" ")[0],
                "scope": k[1],
                "metric": k[2],
                "mean": v,
                "sd": sd if len(seeds) > 1 else None,
                "low": limits(r)[0],
                "high": limits(r)[1],
                "seeds": len(seeds),
            }
            for k, (v, sd, r) in table.items()
        ],
        "cross_site": {
            "metric": "balanced_accuracy",
            "rows": list(training),
            "columns": sites,
            "values": [[float(np.mean(points[f"local/{r}", c, "balanced_accuracy"])) for c in sites] for r in training],
        }
        if "local" in arms
        else {"metric": "balanced_accuracy", "rows": [], "columns": [], "values": []},
        "comparisons": _comparisons(table, arms, training, held_out, len(seeds)),
        "environment": {
            "morphfed": "0.1.0",
            "python": "3.12.7",
            "torch": "2.9.0",
            "torchvision": "0.24.0",
            "timm": "1.0.20",
            "numpy": "2.3.4",
            "platform": "Linux x86_64, glibc 2.39",
            "cpu": "Imaginary CPU @ 2.8 GHz",
            "cores": 2,
            "memory_gib": 15.6,
            "threads": 1,
            "jobs": 2,
            "gpu": None,
        },
        "config": _config(training, held_out, classes, arms, seeds, rounds),
    }


def with_retrogress(results: dict[str, Any], pull: float = 0.12) -> dict[str, Any]:
    """Judged before each communication too: what was just trained is better at home, less so from round to round."""
    sites = results["study"]["training_sites"]
    for unit in results["arms"]:
        if unit["algorithm"] in ("local", "centralised"):
            continue
        rng = numpy_stream(0, "before", unit["model"], unit["seed"])
        for entry in unit["history"]:
            for i, block in enumerate(entry["sites"].values()):
                lift = pull * (i + 1) / entry["round"] ** 0.7 + rng.normal(0, 0.02)
                after = block["validation"]
                value = float(np.clip(after["balanced_accuracy"] + lift, 0, 1))
                block["before"] = {"balanced_accuracy": value, "macro_f1": value - 0.02, "loss": 1.5 - value}
    counts = results["data"]["sites"]
    images = {s: sum(c["validation"] for c in counts[s]["classes"].values()) for s in sites}
    results["retrogress"] = summarise_retrogress(results["arms"], sites, images)
    return results


Table = dict[tuple[str, str, str], tuple[float, float, np.ndarray]]


def _combine(points: Any, spread: Any, arms: Any, training: Any, held_out: Any) -> Table:
    """Means over seeds, with the bootstrap of the seed mean, for every model and scope."""
    models = list(dict.fromkeys(k[0] for k in points))
    per_site = {k: (np.array(v), np.array(spread[k])) for k, v in points.items()}
    if "local" in arms:
        for s in training:
            for m in METRICS:
                per_site["local (own site)", s, m] = per_site[f"local/{s}", s, m]
        models.append("local (own site)")
    if "local" in arms:
        for site, m in {(k[1], k[2]) for k in points}:
            of = [per_site[f"local/{s}", site, m] for s in training]
            per_site["local (mean)", site, m] = (np.mean([v for v, _ in of], 0), np.mean([r for _, r in of], 0))
        models.append("local (mean)")
    table: Table = {}
    for model in models:
        for m in METRICS:
            here = [s for s in (*training, *held_out) if (model, s, m) in per_site]
            scopes = {s: [s] for s in here} | {"mean_training": list(training)}
            if held_out and set(held_out) <= set(here):
                scopes["mean_held_out"] = list(held_out)
            for scope, of in scopes.items():
                v = np.mean([per_site[model, s, m][0] for s in of], 0)
                r = np.mean([per_site[model, s, m][1] for s in of], 0)
                table[model, scope, m] = (
                    float(v.mean()),
                    float(v.std(ddof=1)) if len(v) > 1 else 0.0,
                    r.mean(0),
                )
            v = np.array([per_site[model, s, m][0] for s in training])
            r = np.array([per_site[model, s, m][1] for s in training])
            sd = float(v.min(0).std(ddof=1)) if v.shape[1] > 1 else 0.0
            table[model, "worst_training", m] = (float(v.min(0).mean()), sd, r.min(0).mean(0))
            table[model, "gap_training", m] = (float(np.ptp(v, 0).mean()), sd, np.ptp(r, 0).mean(0))
    return table


def _comparisons(table: Table, arms: Any, training: Any, held_out: Any, seeds: int) -> list[dict[str, Any]]:
    federated = [a for a in arms if a not in ("local", "centralised")]
    against = [a for a in ("centralised",) if a in arms]
    against += ["local (own site)", "local (mean)"] if "local" in arms else []
    pairs = [(a, b) for a in federated for b in against]
    pairs += [(a, b) for i, a in enumerate(federated) for b in federated[:i]]
    scopes = [*training, *held_out, "mean_training", "worst_training", *(["mean_held_out"] if held_out else [])]
    found = []
    for metric in ("balanced_accuracy", "macro_f1"):
        for scope in scopes:
            family = [compared(table, a, b, metric, scope, seeds) for a, b in pairs]
            found += holm([c for c in family if c is not None])
    return found


def compared(table: Table, a: str, b: str, metric: str, scope: str, seeds: int) -> dict[str, Any] | None:
    if (a, scope, metric) not in table or (b, scope, metric) not in table:
        return None
    x, y = table[a, scope, metric], table[b, scope, metric]
    spread = x[2] - y[2]
    difference = x[0] - y[0]
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "scope": scope,
        "difference": difference,
        "low": limits(spread)[0],
        "high": limits(spread)[1],
        "p": math.erfc(abs(difference) / max(float(spread.std()), 1e-9) / math.sqrt(2)),
        "resamples": 2000,
        "seeds": seeds,
        "clusters": 500,
        "cluster_unit": "mixed",
    }


def holm(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    worst = 0.0
    for i, c in enumerate(sorted(family, key=lambda c: c["p"])):
        worst = c["p_holm"] = min(1.0, max(worst, c["p"] * (len(family) - i)))
    return family


def _data(site: str, held_out: bool, truth: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    rng = numpy_stream(0, "data", site)
    counts = {}
    for i, name in enumerate(classes):
        t = int((truth == i).sum())
        parts = (0, 0) if held_out else (2 * t, max(1, t // 3))
        counts[name] = {"train": parts[0], "validation": parts[1] if t else 0, "test": t}
    patients = 21 if site == "tecom" else None
    mean = np.clip(np.array([0.72, 0.62, 0.72]) + rng.normal(0, 0.06, 3), 0, 1)
    given = site != "bccd"
    return {
        "role": "held_out" if held_out else "train",
        "source": {"barcelona": "pbc", "bccd": "bccd_crops"}.get(site, "folders"),
        "n": sum(sum(c.values()) for c in counts.values()),
        "patients": patients,
        "cluster_unit": "patient" if patients else "image",
        "classes": counts,
        "left_out": [{"source_label": "PLATELET", "n": 250, "why": "label 'platelet' is not a class of this study"}]
        if site == "barcelona"
        else [],
        "um_per_px": 0.1 if given else 0.12,
        "scale_from": "given" if given else "nucleus",
        "crop_px": 250,
        "image_px": [360, 363],
        "samples": [
            {"class": c, "image": picture(drawn(c, classes), site, 1000 + k)}
            for k, c in enumerate((*classes, *classes)[:8])
        ],
        "colour": {"mean": [float(v) for v in mean], "sd": [float(v) for v in 0.06 + 0.05 * rng.random(3)]},
    }


def _check(sites: list[str]) -> dict[str, Any]:
    return {
        "status": "warnings",
        "findings": [
            {
                "code": "near-duplicate",
                "level": "warning",
                "site": sites[-1],
                "count": 3,
                "message": "3 pairs of pictures look alike",
                "examples": [f"{sites[-1]}/a.jpg", f"{sites[-1]}/b.jpg"],
                "fix": "look at them and remove the copies",
            },
            {
                "code": "few-images",
                "level": "info",
                "site": sites[0],
                "count": 1,
                "message": "class 'basophil' has 4 test images",
                "examples": [],
                "fix": "expect a wide interval",
            },
        ],
    }


def _config(training: Any, held_out: Any, classes: Any, arms: Any, seeds: Any, rounds: int) -> dict[str, Any]:
    model = {"name": "torchvision/squeezenet1_1", "weights": "pretrained", "norm": "batch", "dropout": None}
    train = {
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "momentum": 0.9,
        "schedule": "cosine",
        "warmup": 0.05,
        "batch_size": 16,
        "local_epochs": 3,
        "clip": 5.0,
        "precision": "bf16",
        "loss": {"kind": "focal", "gamma": 2.0},
        "augment": {"flip": True, "stain": 0.5},
    }
    federation = {"rounds": rounds, "quorum": 1.0, "select": "balanced_accuracy"}
    return {
        "name": "four-labs",
        "seeds": list(seeds),
        "classes": list(classes),
        "held_out": list(held_out),
        "sites": {s: {"path": s, "source": None} for s in (*training, *held_out)},
        "data": {
            "image_size": 96,
            "field_um": 25.0,
            "estimate_scale": True,
            "split": {"train": 0.6, "validation": 0.1, "test": 0.3, "seed": 0},
        },
        "model": model,
        "train": train,
        "federation": federation,
        "arms": {
            a: {
                "algorithm": a,
                "config": {"mu": 0.01} if a == "fedprox" else {},
                "model": model,
                "train": train,
                "federation": federation,
            }
            for a in arms
        },
        "evaluation": {"resamples": 2000, "use": "best"},
        "compute": {"device": "cpu", "threads": 1},
    }
