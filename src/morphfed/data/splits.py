"""Train, validation and test: a patient on one side only, classes stratified, the same for the same seed.

Every site is split by itself, from a random stream of its own, so another site's images change nothing. Rows
that belong together form a unit: those of one patient; without a patient those of one lesion, else of one slide;
copies of a picture, exact or nearly so, in any case. Units of one image are dealt out class by class, exactly. Larger
units are placed greedily, largest first, where they bring the class counts nearest to the fractions, and then moved
while that helps; scikit-learn's StratifiedGroupKFold makes folds of equal size only, which 0.70/0.10/0.20 is not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import ConfigError, did_you_mean
from morphfed.core.seeding import numpy_stream
from morphfed.data.manifest import SPLITS, Manifest

if TYPE_CHECKING:
    import pandas as pd

_TRAIN, _TEST = SPLITS.index("train"), SPLITS.index("test")
_MISSING = 0.1  # what a class absent from train or test costs, or an empty split, in squared fractions
_PASSES = 20  # rounds of moving single units; a handful suffices in practice
_OWNERS = ("patient", "lesion", "slide")  # what rows belong to; the first that is known counts


@dataclass(frozen=True)
class SplitNotes:
    """What a person should know about a split, one sentence each."""

    sentences: list[str] = field(default_factory=list)


@dataclass
class _Site:
    """One site's rows in an order of their own, so that the manifest's order does not matter."""

    name: str
    rows: list[int]
    classes: list[str | None]
    given: list[str | None]
    owners: list[tuple[str, str] | None]  # kind and id of what the row belongs to
    units: list[list[int]]  # positions in `rows`
    by: str
    notes: list[str]


def assign_splits(
    manifest: Manifest,
    fractions: Mapping[str, float],
    seed: int,
    labels: str | Sequence[str | None] = "label",
    twins: Sequence[str | None] | None = None,
) -> tuple[Manifest, SplitNotes]:
    """Give every row without a split one; rows that carry one (a source's own split) keep it.

    Args:
        manifest: any number of sites.
        fractions: split → share, summing to 1; a split left out gets nothing.
        seed: same seed, same rows → same split, whatever their order and whatever other sites there are.
        labels: class names to stratify by: a column, or one value for each row. Null counts as a class.
        twins: rows of a site with the same name are kept on one side, as copies are; None: a row has no twin.

    Returns:
        The manifest, rows in the same order, and the notes.

    Raises:
        ConfigError: an unknown split, or fractions that do not sum to 1.
    """
    shares = _shares(fractions)
    frame = manifest.frame
    classes = list(frame[labels]) if isinstance(labels, str) else list(labels)
    if len(classes) != len(frame):
        raise ValueError(f"labels has {len(classes)} values for {len(frame)} rows")
    assigned: list[str | None] = list(frame["split"])
    sentences: list[str] = []
    for name in manifest.sites:
        site = _site(name, frame, classes, twins or [None] * len(frame))
        for row, split in zip(site.rows, _split_site(site, shares, seed), strict=True):
            assigned[row] = split
        sentences += [f"{name}: {text}" for text in site.notes]
    frame = frame.copy()
    frame["split"] = assigned
    return Manifest(frame, manifest.root), SplitNotes(sentences)


def may_train(manifest: Manifest, extra: Sequence[bool], twins: Sequence[str | None] | None = None) -> list[bool]:
    """Which rows of ``extra`` can join the training part of a finished split without changing it.

    A row can if no other row of its patient, slide or copies lies in validation or test, and its source does not put
    the row itself there.

    Args:
        manifest: rows that are split, and those of ``extra``, whose split is the source's own or null.
        extra: one value a row; True: the row has no part yet.
        twins: as in :func:`assign_splits`.

    Returns:
        One value a row, False for those that are split already.
    """
    frame = manifest.frame
    splits, sites = list(frame["split"]), list(frame["site"])
    found = [False] * len(frame)
    for name in manifest.sites:
        here = [i for i, site in enumerate(sites) if site == name]
        for unit in united(_keys(frame, here, twins or [None] * len(frame))):
            rows = [here[k] for k in unit]
            seen = any(splits[i] in ("validation", "test") for i in rows if not extra[i])
            for i in rows:
                found[i] = extra[i] and not seen and splits[i] in (None, "train")
    return found


@dataclass(frozen=True)
class Leak:
    """What a split has on both sides.

    Attributes:
        kind: ``patient``, ``lesion`` or ``slide``.
        owners: how many of them have images in train and in the part.
        seen: images of the part that show one of these.
        images: images of the part.
    """

    kind: str
    owners: int
    seen: int
    images: int


def leaks(owners: Sequence[tuple[str, str] | None], splits: Sequence[str | None], part: str = "test") -> list[Leak]:
    """Patients, lesions and slides of one site that lie both in train and in ``part``; none where there is none.

    Args:
        owners: kind and id of what each row belongs to, None where that is not known.
        splits: each row's split.
    """
    trained = {owner for owner, split in zip(owners, splits, strict=True) if owner and split == "train"}
    inside = [owner for owner, split in zip(owners, splits, strict=True) if split == part]
    both = Counter(owner for owner in inside if owner in trained)
    return [
        Leak(kind, len(found), sum(both[owner] for owner in found), len(inside))
        for kind in _OWNERS
        if (found := [owner for owner in both if owner and owner[0] == kind])
    ]


def owners_of(frame: pd.DataFrame) -> list[tuple[str, str] | None]:
    """What each row belongs to: its patient, else its lesion, else its slide; None where none is known."""
    known = {kind: list(frame[kind]) for kind in _OWNERS if kind in frame.columns}
    return [next(((kind, str(ids[i])) for kind, ids in known.items() if ids[i]), None) for i in range(len(frame))]


def _shares(fractions: Mapping[str, float]) -> NDArray[np.float64]:
    for name, share in fractions.items():
        if name not in SPLITS:
            raise ConfigError(f"'{name}' is not a split.{did_you_mean(name, SPLITS)}", fix=f"use {', '.join(SPLITS)}.")
        if not 0 <= share <= 1:
            raise ConfigError(f"The share of {name} is {share}.", fix="give shares between 0 and 1.")
    shares = np.array([float(fractions.get(name, 0.0)) for name in SPLITS])
    if abs(shares.sum() - 1) > 1e-6 or shares[_TRAIN] == 0:
        raise ConfigError(
            f"The shares of the splits sum to {shares.sum():g}, and train has {shares[_TRAIN]:g}.",
            fix="give shares that sum to 1, with some for train; for example 0.7, 0.1 and 0.2.",
        )
    return shares


def _site(name: str, frame: pd.DataFrame, classes: Sequence[Any], twins: Sequence[str | None]) -> _Site:
    here = [i for i, site in enumerate(frame["site"]) if site == name]
    hashes, paths = list(frame["sha256"]), list(frame["path"])
    here.sort(key=lambda i: (hashes[i] or "", paths[i]))
    owners = owners_of(frame)
    kinds = Counter(owner[0] if (owner := owners[i]) else "image" for i in here)
    splits = list(frame["split"])
    repeated = sum(n - 1 for n in Counter(hashes[i] for i in here if hashes[i]).values())
    notes = [f"{repeated} exact duplicates stay on the side of their original"] if repeated else []
    alike = Counter(twins[i] for i in here if twins[i])
    if near := sum(n - 1 for n in alike.values()):
        notes.append(f"{near} pictures that nearly repeat another stay on its side")
    own = [None if classes[i] is None or classes[i] != classes[i] else str(classes[i]) for i in here]
    by = " and ".join(k for k in (*_OWNERS, "image") if kinds[k])
    units = united(_keys(frame, here, twins))
    return _Site(name, here, own, [splits[i] for i in here], [owners[i] for i in here], units, by, notes)


def _keys(frame: pd.DataFrame, here: Sequence[int], twins: Sequence[str | None]) -> list[list[tuple[str, str]]]:
    """What each of the rows ``here`` shares with the other rows of its unit: its owner, bytes, looks."""
    owners, hashes = owners_of(frame), list(frame["sha256"])
    keys = [[owner] if (owner := owners[i]) else [] for i in here]
    for key, i in zip(keys, here, strict=True):
        if hashes[i]:
            key.append(("sha256", hashes[i]))
        if twins[i]:
            key.append(("twins", str(twins[i])))
    return keys


def united(keys: Sequence[Sequence[tuple[str, str]]]) -> list[list[int]]:
    """Positions that share a key, directly or through others (union–find), in order of their first one."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, own in enumerate(keys):
        for key in own:
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    units: dict[int, list[int]] = defaultdict(list)
    for i in range(len(keys)):
        units[root(i)].append(i)
    return list(units.values())


def _split_site(site: _Site, shares: NDArray[np.float64], seed: int) -> list[str]:
    result: list[str | None] = list(site.given)
    free = []
    torn = 0
    for unit in site.units:
        official = Counter(site.given[i] for i in unit if site.given[i])
        if not official:
            free.append(unit)
            continue
        torn += len(official) > 1
        usual = max(official, key=lambda split: (official[split], -SPLITS.index(str(split))))
        for i in unit:
            result[i] = result[i] or usual
    random = numpy_stream(seed, "split", site.name)
    free = [free[k] for k in random.permutation(len(free))]
    names = sorted({site.classes[i] for unit in free for i in unit}, key=str)
    index = {name: c for c, name in enumerate(names)}
    content = np.zeros((len(free), len(names)))
    for u, unit in enumerate(free):
        for i in unit:
            content[u, index[site.classes[i]]] += 1
    for unit, split in zip(free, _place(content, shares), strict=True):
        for i in unit:
            result[i] = SPLITS[split]
    done = [split for split in result if split is not None]
    _describe(site, done, torn, shares)
    return done


def _place(content: NDArray[np.float64], shares: NDArray[np.float64]) -> list[int]:
    """The split (its index in ``SPLITS``) of each unit.

    Args:
        content: (units, classes) images of each class in each unit, in random order.
        shares: (3,) wanted share of each split.
    """
    placed = np.full(len(content), -1)
    sizes = content.sum(axis=1)
    large = np.flatnonzero(sizes > 1)
    counts = np.zeros((len(SPLITS), content.shape[1]))
    if len(large):
        large = large[np.argsort(-sizes[large], kind="stable")]
        placed[large] = _greedy(content[large], shares)
        for split in range(len(SPLITS)):
            counts[split] = content[placed == split].sum(axis=0)
    for c in range(content.shape[1]):
        single = np.flatnonzero((sizes == 1) & (content[:, c] == 1))
        wanted = _deal(len(single), counts[:, c], shares)
        placed[single] = np.repeat(np.arange(len(SPLITS)), wanted)
    return [int(split) for split in placed]


def _deal(n: int, already: NDArray[np.float64], shares: NDArray[np.float64]) -> list[int]:
    """How many of ``n`` single images of one class each split gets.

    The split that is furthest below its share takes the next one (largest remainders, given what is there
    already). From two images on, train and test get one each before anything else.
    """
    total = n + already.sum()
    wanted = shares * total - already
    dealt = [0] * len(SPLITS)
    first = [_TRAIN, _TEST] if total >= 2 and shares[_TEST] > 0 else [_TRAIN]
    for split in [s for s in first if already[s] == 0][:n]:
        dealt[split] += 1
    whole = [max(d, int(np.floor(w + 1e-9))) for d, w in zip(dealt, wanted, strict=True)]
    if sum(whole) <= n:
        dealt = whole
    while sum(dealt) < n:
        # Shares of zero take nothing; of a draw the earlier split.
        lack = [w - d if s > 0 else -np.inf for w, d, s in zip(wanted, dealt, shares, strict=True)]
        dealt[int(np.argmax(np.round(lack, 9)))] += 1
    return dealt


def _greedy(
    units: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Place ``units`` (largest first), then move single ones while that lowers the cost."""
    totals = units.sum(axis=0)
    totals[totals == 0] = 1.0
    spread = (units > 0).sum(axis=0) >= 2  # classes that can be on two sides
    open_splits = [s for s in range(len(SPLITS)) if shares[s] > 0]

    def cost(counts: NDArray[np.float64]) -> float:
        per_class = (counts - shares[:, None] * totals) / totals
        overall = counts.sum(axis=1) / units.sum() - shares
        absent = sum(int(((counts[s] == 0) & spread).sum()) for s in (_TRAIN, _TEST) if shares[s] > 0)
        empty = sum(not counts[s].any() for s in open_splits)
        return float((per_class**2).sum() + (overall**2).sum() + _MISSING * (absent + empty))

    counts = np.zeros((len(SPLITS), units.shape[1]))
    placed = np.full(len(units), -1)

    def best(u: int) -> int:
        costs = []
        for s in open_splits:
            counts[s] += units[u]
            costs.append(round(cost(counts), 12))
            counts[s] -= units[u]
        return open_splits[int(np.argmin(costs))]

    for _ in range(_PASSES):
        before = placed.copy()
        for u in range(len(units)):
            if placed[u] >= 0:
                counts[placed[u]] -= units[u]
            placed[u] = best(u)
            counts[placed[u]] += units[u]
        if np.array_equal(before, placed):
            break
    return placed


def _describe(site: _Site, splits: Sequence[str], torn: int, shares: NDArray[np.float64]) -> None:
    kept = sum(given is not None for given in site.given)
    sizes = Counter(splits)
    counted = ", ".join(f"{name} {sizes[name]}" for name in SPLITS)
    how = f"split by {site.by}" if kept < len(splits) else "the source's own split"
    site.notes.insert(0, f"{how}: {counted}")
    if 0 < kept < len(splits):
        site.notes.append(f"{kept} of {len(splits)} images keep the source's own split")
    if torn:
        site.notes.append(
            f"{torn} patients, lesions, slides or duplicates lie on two sides in the split that was given"
        )
        site.notes += [
            f"the split leaks: {leak.owners} {leak.kind}s lie in both train and {part}, so {leak.seen} of "
            f"{leak.images} {part} images show one that was trained on, and scores there are too high"
            for part in ("test", "validation")
            for leak in leaks(site.owners, splits, part)
        ]
    for name in SPLITS:
        if sizes[name] == 0 and shares[SPLITS.index(name)] > 0:
            site.notes.append(f"{name} is empty")
    where: dict[str | None, Counter[str]] = defaultdict(Counter)
    for label, split in zip(site.classes, splits, strict=True):
        where[label][split] += 1
    for label in sorted(where, key=str):
        n, parts = sum(where[label].values()), where[label]
        shown = "images without a class" if label is None else f"class '{label}'"
        if n == 1:
            site.notes.append(f"{shown} has one image; it is in {next(iter(parts))}")
        else:
            absent = [s for s in ("train", "test") if not parts[s] and shares[SPLITS.index(s)] > 0]
            if absent:
                site.notes.append(f"{shown} ({n} images) has none in {' and '.join(absent)}")
