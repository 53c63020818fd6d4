"""Which bags of a study take part: those with a class, instances, numbers that are finite, and one width for all."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import DataError
from morphfed.core.progress import Reporter, silent, tracked
from morphfed.data.bags.drafting import DIM, ENCODER, INSTANCES, NO_LABEL, PROBLEM
from morphfed.data.bags.quality import shared_slides
from morphfed.data.bags.store import odd_at
from morphfed.data.manifest import Manifest
from morphfed.experiment.assemble import LeftOut, column, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from morphfed.experiment.study import SiteConfig, Study

_NAMED = 3
_NO_CLASS = "is not a class of this study"


def draft_site(name: str, site: SiteConfig, path: Path, report: Reporter) -> tuple[Manifest, list[str]]:
    """One site's bags: a folder, a slide table, a CSV set, or a manifest that was drafted before.

    Raises:
        DataError: nothing there is a bag; names the site.
        ConfigError: an option that bags have not.
    """
    from morphfed.data.bags.drafting import draft_bags

    if path.suffix == ".parquet":
        manifest = Manifest.read(path)
        manifest = manifest.for_site(name) if name in manifest.sites else manifest
        missing = [c for c in (INSTANCES, DIM, ENCODER, PROBLEM) if c not in manifest.frame.columns]
        if missing:
            raise DataError(
                f"Site '{name}': {path} is no manifest of bags: it has no column {', '.join(missing)}.",
                fix="name the folder of bags or their slide table instead.",
            )
        return Manifest(manifest.frame.assign(site=name), manifest.root), [f"{len(manifest)} bags from {path.name}"]
    return draft_bags(path, site=name, options=site.options, report=report)


@dataclass(frozen=True)
class Sought:
    """What a study of bags looks for in the rows of a manifest.

    Attributes:
        of_rows: a manifest's rows → of each row its class (in survival its fate), or None and why not.
        fix: what to look at where a site has none.
    """

    of_rows: Callable[[pd.DataFrame], list[tuple[str | None, str]]]
    fix: str


def classes_sought(study: Study) -> Sought:
    """Rows whose label is a class of the study."""

    def one(site: str, own: str) -> tuple[str | None, str]:
        target = class_of(own, study, site)
        missing = "its row has no label" if own == NO_LABEL else f"label '{own}' {_NO_CLASS}"
        return target, missing if target is None else ""

    return Sought(
        lambda rows: [one(site, str(own)) for site, own in zip(rows["site"], rows["source_label"], strict=True)],
        f"the study's classes ({', '.join(study.classes)}) and data.labels",
    )


def select_bags(
    manifest: Manifest, study: Study, sought: Sought, *, look: bool, report: Reporter = silent
) -> tuple[Manifest, LeftOut, list[str], list[str]]:
    """Find the bags that are looked for, refuse bags of different encoders, and assign the parts.

    Args:
        manifest: all sites.
        study: held-out sites, shares.
        sought: what is looked for.
        look: read every bag once for numbers that are not finite.
        report: progress.

    Returns:
        The manifest with ``split``, ``class`` and ``parent`` (always null); what was left out by site; sentences of the
        split; sentences that name files.

    Raises:
        DataError: bags of different widths or encoders, or of another encoder than the study's, or a site without a
            usable one; names the site.
    """
    import pandas as pd

    frame = manifest.frame.copy()
    problems = column(frame, PROBLEM)
    refuse_mixed(frame[frame[PROBLEM].isna()])
    refuse_other_encoder(frame[frame[PROBLEM].isna()], study.data.encoder)
    odd = _odd(manifest, [p is None for p in problems], report) if look else [0] * len(frame)
    left_out: LeftOut = {site: Counter() for site in study.sites}
    named: dict[tuple[str, str], list[str]] = defaultdict(list)
    classes: list[str | None] = []
    for site, own, path, problem, bad, (target, missing) in zip(
        frame["site"], frame["source_label"], frame["path"], problems, odd, sought.of_rows(frame), strict=True
    ):
        reason = problem or ("features that are not finite" if bad else missing)
        classes.append(None if reason else target)
        if reason:
            left_out[site][str(own), reason] += 1
            if not missing.endswith(_NO_CLASS):
                named[site, reason].append(f"{Path(path).name}: {bad} instances" if bad else Path(path).name)
    frame["class"], frame["parent"] = pd.Series(classes, dtype=object), None
    _refuse_empty(frame, study, left_out, sought.fix)
    divided, notes = split(Manifest(frame, manifest.root), study, left_out, look=False, report=report)
    said = [_sentence(site, reason, files) for (site, reason), files in named.items()]
    return divided, left_out, notes, [*said, *_same_slides(frame)]


def class_of(label: str, study: Study, site: str) -> str | None:
    """The class that a site's label stands for: as the site's ``labels`` or the study's say, or itself."""
    named = {**study.data.labels, **study.sites[site].labels}.get(label, label)
    return named if named in study.classes else None


def refuse_mixed(frame: pd.DataFrame) -> None:
    """Refuse bags of different widths or encoders.

    Args:
        frame: rows without a problem, of all sites.

    Raises:
        DataError: counts each width and encoder by site, and names a file.
    """
    for key, what in ((DIM, "numbers an instance"), (ENCODER, "encoder")):
        rows = frame[frame[key].notna()]
        if rows[key].nunique() < 2:
            continue
        counts = rows[key].value_counts()
        rare = counts.index[-1]
        by_site = "; ".join(
            f"{site} {', '.join(f'{v} ({n})' for v, n in here[key].value_counts().items())}"
            for site, here in rows.groupby("site")
        )
        example = Path(rows["path"][rows[key] == rare].iloc[0]).name
        raise DataError(
            f"The bags differ in {what}: {by_site}. For example {example} has {rare}.",
            fix="embed all slides of all sites with one encoder, or leave the others out.",
        )


def refuse_other_encoder(frame: pd.DataFrame, encoder: str | None) -> None:
    """Refuse bags that say that they are of another encoder than the study names; those that do not say pass.

    Args:
        frame: rows without a problem.
        encoder: a name, which any fingerprint of weights may follow, or both; None: the study names none.

    Raises:
        DataError: counts the other encoders by site, and names a file.
    """
    if encoder is None:
        return
    said = frame[frame[ENCODER].notna()]
    others = said[[not f"{found} ".startswith(f"{encoder} ") for found in said[ENCODER]]]
    if len(others):
        counts = Counter(zip(others["site"], others[ENCODER], strict=True))
        listed = "; ".join(f"{site} {found} ({n})" for (site, found), n in sorted(counts.items()))
        raise DataError(
            f"data.encoder = '{encoder}', and there are bags of others: {listed}. For example "
            f"{Path(others['path'].iloc[0]).name}.",
            fix="embed the slides with the study's encoder, or name the encoder that all sites agreed on.",
        )


def _odd(manifest: Manifest, wanted: Sequence[bool], report: Reporter) -> list[int]:
    """Instances of each bag that hold a number that is not finite; 0 for bags that are not wanted."""
    files = manifest.files()

    def one(row: int) -> int:
        return odd_at(files[row]) if wanted[row] else 0

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(one, range(len(files)))
        return list(tracked(found, report, "bags", "looking at features", total=len(files)))


def _sentence(site: str, reason: str, files: Sequence[str]) -> str:
    more = f"; and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{site}: {len(files)} × {reason} ({'; '.join(files[:_NAMED])}{more})"


def _same_slides(frame: pd.DataFrame) -> list[str]:
    """Slides that two sites have under one id: a slide in training here and in a test there judges nothing."""
    return [
        f"{' and '.join(where)} share {len(ids)} slide ids ({', '.join(ids[:_NAMED])}"
        f"{', …' if len(ids) > _NAMED else ''}): if these are the same slides, keep each at one site"
        for where, ids in shared_slides(frame[frame["class"].notna()]).items()
    ]


def _refuse_empty(frame: pd.DataFrame, study: Study, left_out: LeftOut, fix: str) -> None:
    counts = Counter(frame["site"][frame["class"].notna()])
    for site in study.sites:
        if not counts[site]:
            reasons: Counter[str] = Counter()
            for (_, reason), n in left_out[site].items():
                reasons[reason] += n
            listed = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common()) or "it has none"
            raise DataError(
                f"Site '{site}': no bag can be used ({listed}).",
                fix=f"check sites.{site}.path and .options, {fix}; docs/how-to/bags.md says how bags are found.",
            )
