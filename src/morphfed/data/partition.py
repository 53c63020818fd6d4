"""One site's images dealt out to several simulated sites, with classes as unevenly as a Dirichlet draw makes them.

Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for federated visual classification,
arXiv:1909.06335, 2019, in the form of Li, Diao, Chen, He: Federated learning on non-IID data silos, ICDE 2022: for each
class the sites' shares are drawn from ``Dir(α, …, α)``, and its images are cut by them. α → ∞ deals evenly; at 0.1 most
classes lie at one or two sites. Draws that leave a site with fewer than ``least`` images are repeated, as there.

Images of one patient (of one lesion or slide, where patients are unknown) and exact copies stay together; such a unit
counts as a unit of its most frequent class. Only classes are skewed: the simulated sites share microscope, stain and
camera.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.seeding import numpy_stream
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.splits import owners_of, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIES = 1000


@dataclass(frozen=True)
class Partition:
    """A manifest dealt out.

    Attributes:
        sites: name → its images, none of them empty.
        counts: site → images of each class.
        left_out: label → images that belong to none of the classes.
        tries: draws that were needed.
    """

    sites: dict[str, Manifest]
    counts: dict[str, Counter[str]]
    left_out: Counter[str]
    tries: int


def partition(
    manifest: Manifest,
    *,
    sites: int,
    alpha: float,
    seed: int,
    name: str,
    classes: Sequence[str] = (),
    least: int = 10,
) -> Partition:
    """Deal a manifest's images out to simulated sites.

    Args:
        manifest: of any sites, taken together.
        sites: how many are simulated, ≥ 2.
        alpha: α > 0 of the Dirichlet distribution.
        seed: same seed, same rows → same sites, whatever the rows' order.
        name: the sites are called ``name-1`` … ``name-K``.
        classes: nodes of the ontology; finer labels are joined. Empty: every label is a class.
        least: images that each site must have.

    Raises:
        DataError: no image has a class, or no draw gave every site enough.
        ConfigError: a class that is not in the ontology.
    """
    labels, left_out = _labels(manifest, classes)
    rows = [i for i, label in enumerate(labels) if label is not None]
    if not rows:
        raise DataError(
            "None of the manifest's images has a class.",
            fix="correct its labels, or name other classes with --classes.",
        )
    paths, hashes = list(manifest.frame["path"]), list(manifest.frame["sha256"])
    rows.sort(key=lambda i: (hashes[i] or "", paths[i]))
    units = _units(manifest, rows)
    kinds = [_majority([str(labels[rows[i]]) for i in unit]) for unit in units]
    sizes = np.array([len(unit) for unit in units])
    for attempt in range(TRIES):
        placed = _deal(kinds, sizes, sites, alpha, seed, attempt)
        held = np.bincount(placed, weights=sizes, minlength=sites)
        if held.min() >= least:
            return _written(manifest, name, sites, placed, units, rows, labels, left_out, attempt + 1)
    raise DataError(
        f"{TRIES} draws at α = {alpha:g} over {sites} sites all left a site with fewer than {least} of the "
        f"{len(rows)} images.",
        fix="raise --dirichlet, or lower --sites or --least.",
    )


def _labels(manifest: Manifest, classes: Sequence[str]) -> tuple[list[str | None], Counter[str]]:
    ontology = load_ontology()
    if classes:
        ontology.resolve_classes(classes)
    found: list[str | None] = []
    left_out: Counter[str] = Counter()
    for node, own in zip(manifest.frame["label"], manifest.frame["source_label"], strict=True):
        target = node if not classes or node is None else ontology.to_class(node, classes)
        if target is None:
            left_out[str(own if node is None else node)] += 1
        found.append(target)
    return found, left_out


def _units(manifest: Manifest, rows: Sequence[int]) -> list[list[int]]:
    """Positions in ``rows`` that must stay together."""
    sites, hashes, owners = list(manifest.frame["site"]), list(manifest.frame["sha256"]), owners_of(manifest.frame)
    keys = []
    for i in rows:
        own = [(owner[0], f"{sites[i]}/{owner[1]}")] if (owner := owners[i]) else []
        keys.append([*own, *([("sha256", hashes[i])] if hashes[i] else [])])
    return united(keys)


def _majority(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def _deal(
    kinds: Sequence[str], sizes: NDArray[np.int64], sites: int, alpha: float, seed: int, attempt: int
) -> NDArray[np.int64]:
    """The site of each unit, from 0."""
    placed = np.zeros(len(kinds), dtype=np.int64)
    for kind in sorted(set(kinds)):
        random = numpy_stream(seed, "partition", attempt, kind)
        borders = np.cumsum(random.dirichlet(np.full(sites, alpha)))[:-1]
        mine = random.permutation(np.flatnonzero([k == kind for k in kinds]))
        middles = (np.cumsum(sizes[mine]) - sizes[mine] / 2) / sizes[mine].sum()
        placed[mine] = np.searchsorted(borders, middles)
    return placed


def _written(
    manifest: Manifest,
    name: str,
    sites: int,
    placed: NDArray[np.int64],
    units: Sequence[Sequence[int]],
    rows: Sequence[int],
    labels: Sequence[str | None],
    left_out: Counter[str],
    tries: int,
) -> Partition:
    number = np.full(len(manifest), -1)
    for unit, site in zip(units, placed, strict=True):
        number[[rows[i] for i in unit]] = site
    parts: dict[str, Manifest] = {}
    counts: dict[str, Counter[str]] = {}
    for site in range(sites):
        called, inside = f"{name}-{site + 1}", number == site
        part = manifest.where(inside)
        parts[called] = Manifest(part.frame.assign(site=called), manifest.root)
        counts[called] = Counter(str(labels[int(i)]) for i in np.flatnonzero(inside))
    return Partition(parts, counts, left_out, tries)
