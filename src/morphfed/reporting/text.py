"""How numbers and names are written: one place, so that the whole report agrees with itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

MISSING = "–"
MINUS = "\u2212"

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "ece": "calibration error (ECE)",
    "aurc": "area under risk–coverage (AURC)",
    "loss": "log loss",
    "c_index": "c-index",
    "dice": "Dice",
    "iou": "IoU",
    "hd95_px": "95 % Hausdorff distance (px)",
    "hd95_um": "95 % Hausdorff distance (µm)",
}
"""Metrics by the name that a reader knows."""

_TITLES = {
    "local": "Local",
    "centralised": "Centralised",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedmedian": "FedMedian",
    "fedopt": "FedOpt",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedbn": "FedBN",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "moon": "MOON",
    "qfedavg": "q-FedAvg",
    "scaffold": "SCAFFOLD",
    "ditto": "Ditto",
    "fedavgm": "FedAvgM",
    "fedadagrad": "FedAdagrad",
    "krum": "Krum",
    "multikrum": "Multi-Krum",
    "ida": "IDA",
    "pfa": "PFA",
    "det": "DET",
    "prr": "PRR-FL",
    "prr-2021": "PRR-FL 2021",
    "pfa-cpa": "PFA + CPA",
    "hypernetwork": "Hyper-network",
    "histofl": "HistoFL",
}


def arm_title(arm: str) -> str:
    """An arm's name as printed; a name of the study's own stays as it was written."""
    return _TITLES.get(arm, arm)


def plain(name: str) -> str:
    """A class or key without its underscores."""
    return name.replace("_", " ")


def metric_name(metric: str) -> str:
    """A metric's name in a sentence."""
    base, _, structure = metric.removesuffix("_masked").partition("/")
    name = METRICS.get(base, plain(base)) + (" (masked)" if metric.endswith("_masked") else "")
    return f"{name} of {plain(structure)}" if structure else name


def capital(text: str) -> str:
    """First letter upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def finite(value: object) -> float | None:
    """``value`` as a float, or None where it is null, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def score(value: float | None, digits: int = 3) -> str:
    """A score, a share or another plain number; a dash where there is none."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text  # no "−0.000"
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign."""
    if value is None:
        return MISSING
    text = score(value, digits)
    return text if value <= 0 or float(text) == 0 else f"+{text}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """``low to high``; empty where either is unknown ("to": a dash would be read as a minus sign)."""
    if low is None or high is None:
        return ""
    return f"{score(low, digits)} to {score(high, digits)}"


def p_value(value: float | None) -> str:
    """A p value; below a thousandth only that is said."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_clause(value: float | None) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return f"p {p_value(value)}" if value is not None and value < 0.001 else f"p = {p_value(value)}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return MISSING if value is None else f"{round(value):,}".replace(",", "\u202f")


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{count(n)} {singular if n == 1 else plural or singular + 's'}"


def megabytes(value: float | None) -> str:
    """Bytes in a unit that suits them (decimal, as networks are sold)."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{round(value)} B"


def duration(seconds: float | None) -> str:
    """Seconds as ``48 s``, ``12 min 05 s`` or ``3 h 20 min``."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def listed(items: Iterable[str], joint: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    words = list(items)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def shortened(items: Sequence[str], most: int) -> str:
    """The first ``most`` items and how many more there are."""
    if len(items) <= most:
        return listed(items)
    return f"{', '.join(items[:most])} and {len(items) - most} more"
