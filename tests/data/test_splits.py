"""Splits: patients whole, classes stratified, the same whatever else is in the manifest."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphfed.core.errors import ConfigError
from morphfed.data.manifest import COLUMNS, SPLITS, Manifest
from morphfed.data.splits import assign_splits, may_train

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def build(rows: list[dict[str, Any]]) -> Manifest:
    full = [{**dict.fromkeys(COLUMNS), "site": "s", "source": "x", "source_label": "y", **row} for row in rows]
    return Manifest(pd.DataFrame(full, columns=list(COLUMNS)), Path())


def images(site: str = "s", **counts: int) -> list[dict[str, Any]]:
    return [
        {"path": f"{site}/{label}-{i}", "site": site, "label": label, "sha256": f"{site}-{label}-{i}"}
        for label, n in counts.items()
        for i in range(n)
    ]


def by_class(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    counts = Counter(zip(manifest.frame["label"], manifest.frame["split"], strict=True))
    return {label: tuple(counts[label, s] for s in SPLITS) for label in set(manifest.frame["label"])}


def split_of_path(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.frame["path"], manifest.frame["split"], strict=True))


def test_single_images_meet_the_fractions_exactly() -> None:
    assigned, notes = assign_splits(build(images(a=250, b=10, c=3, d=2, e=1)), SHARES, 0)
    # 250 → 175/25/50; 10 → 7/1/2; 3 → 2.1/0.3/0.6 → 2/0/1; two → train and test; one → train.
    assert by_class(assigned) == {
        "a": (175, 25, 50),
        "b": (7, 1, 2),
        "c": (2, 0, 1),
        "d": (1, 0, 1),
        "e": (1, 0, 0),
    }
    assert "s: split by image: train 186, validation 26, test 54" in notes.sentences
    assert "s: class 'e' has one image; it is in train" in notes.sentences


@given(n=st.integers(1, 400), parts=st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)))
@settings(max_examples=60, deadline=None)
def test_no_count_is_a_whole_image_off(n: int, parts: tuple[int, int, int]) -> None:
    shares = {name: part / sum(parts) for name, part in zip(SPLITS, parts, strict=True)}
    counts = by_class(assign_splits(build(images(a=n)), shares, 1)[0])["a"]
    assert sum(counts) == n
    assert counts[0] >= 1
    if parts[2] and n >= 2:
        assert counts[2] >= 1
    # A class that would have no training or no test image at all is the one exception to rounding.
    forced = n * shares["train"] < 1 or 0 < n * shares["test"] < 1
    for count, name in zip(counts, SPLITS, strict=True):
        assert abs(count - n * shares[name]) < (2 if forced else 1)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "site": st.sampled_from(["one", "two"]),
            "patient": st.sampled_from([None, *"PQRSTUVW"]),
            "slide": st.sampled_from([None, None, "S1", "S2"]),
            "label": st.sampled_from(["a", "b", "c", None]),
            "sha256": st.one_of(st.none(), st.integers(0, 30).map(str)),
        }
    ),
    min_size=1,
    max_size=60,
).map(lambda rows: [{**row, "path": f"{i:03d}"} for i, row in enumerate(rows)])


@given(rows=ROWS, seed=st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_row_is_assigned_and_nothing_is_torn(rows: list[dict[str, Any]], seed: int) -> None:
    frame = assign_splits(build(rows), SHARES, seed)[0].frame
    assert set(frame["split"]) <= set(SPLITS)
    assert list(frame["path"]) == [row["path"] for row in rows]
    sides: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row, split in zip(rows, frame["split"], strict=True):
        if row["patient"]:
            sides["patient", row["site"], row["patient"]].add(split)
        elif row["slide"]:
            sides["slide", row["site"], row["slide"]].add(split)
        if row["sha256"]:
            sides["sha256", row["site"], row["sha256"]].add(split)
    assert [key for key, splits in sides.items() if len(splits) > 1] == []


@given(rows=ROWS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_and_other_sites_change_nothing(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = split_of_path(assign_splits(build(rows), SHARES, 3)[0])
    shuffled = data.draw(st.permutations(rows))
    assert split_of_path(assign_splits(build(shuffled), SHARES, 3)[0]) == whole
    alone = [row for row in rows if row["site"] == "one"]
    if alone:
        own = split_of_path(assign_splits(build(alone), SHARES, 3)[0])
        assert own == {path: whole[path] for path in own}


@given(rows=ROWS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_official_splits_are_kept(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    official = [data.draw(st.sampled_from([None, *SPLITS])) for _ in rows]
    given_rows = [{**row, "split": split} for row, split in zip(rows, official, strict=True)]
    result = assign_splits(build(given_rows), SHARES, 0)[0].frame["split"]
    assert [r for r, o in zip(result, official, strict=True) if o] == [o for o in official if o]
    assert set(result) <= set(SPLITS)


def test_seeds_differ_and_repeat() -> None:
    manifest = build(images(a=50, b=50))
    first, again, other = (split_of_path(assign_splits(manifest, SHARES, seed)[0]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_patients_of_unequal_size_come_near_the_fractions() -> None:
    rows = [
        {"path": f"{p}-{i}", "patient": f"p{p}", "label": "abc"[(p + i) % 3], "sha256": f"{p}-{i}"}
        for p in range(60)
        for i in range(1 + (7 * p) % 23)
    ]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    for counts in by_class(assigned).values():
        for count, share in zip(counts, SHARES.values(), strict=True):
            assert count / sum(counts) == pytest.approx(share, abs=0.03)
    assert notes.sentences[0].startswith("s: split by patient")


def test_two_patients_are_train_and_test() -> None:
    rows = [{"path": f"{i}", "patient": "PQ"[i % 2], "label": "a"} for i in range(10)]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    assert by_class(assigned) == {"a": (5, 0, 5)}
    assert "s: validation is empty" in notes.sentences


def test_one_patient_trains_and_the_note_says_what_is_missing() -> None:
    rows = [{"path": f"{i}", "patient": "P", "label": "ab"[i % 2]} for i in range(10)]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    assert set(assigned.frame["split"]) == {"train"}
    assert {"s: test is empty", "s: class 'a' (5 images) has none in test"} <= set(notes.sentences)


def test_duplicates_and_the_patients_that_share_one_stay_together() -> None:
    rows = [
        {"path": "1", "patient": "P", "sha256": "same", "label": "a"},
        {"path": "2", "patient": "Q", "sha256": "same", "label": "a"},
        {"path": "3", "patient": "Q", "sha256": "other", "label": "b"},
        *images(a=20, b=20),
    ]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    assert len(set(assigned.frame["split"][:3])) == 1
    assert "s: 1 exact duplicates stay on the side of their original" in notes.sentences
    assert "s: split by patient and image: " in notes.sentences[0]


def test_a_row_joins_the_official_side_of_its_patient_and_torn_ones_are_told() -> None:
    rows = [
        {"path": "1", "patient": "P", "split": "test", "label": "a"},
        {"path": "2", "patient": "P", "label": "a"},
        {"path": "3", "patient": "Q", "split": "train", "label": "a"},
        {"path": "4", "patient": "Q", "split": "test", "label": "a"},
    ]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    assert assigned.frame["split"].tolist() == ["test", "test", "train", "test"]
    assert (
        "s: 1 patients, lesions, slides or duplicates lie on two sides in the split that was given" in notes.sentences
    )
    assert "s: 3 of 4 images keep the source's own split" in notes.sentences


def test_labels_may_be_given_beside_the_manifest() -> None:
    manifest = build(images(a=10))
    coarse = ["x", "y"] * 5
    assigned = assign_splits(manifest, {"train": 0.6, "test": 0.4}, 0, coarse)[0]
    counts = Counter(zip(coarse, assigned.frame["split"], strict=True))
    assert counts == {("x", "train"): 3, ("x", "test"): 2, ("y", "train"): 3, ("y", "test"): 2}
    with pytest.raises(ValueError, match="2 values for 10 rows"):
        assign_splits(manifest, SHARES, 0, ["x", "y"])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 0.7, "valid": 0.3}, r"'valid' is not a split\. Did you mean 'validation'"),
        ({"train": 0.7, "test": 0.2}, "sum to 0.9"),
        ({"train": 1.2, "test": -0.2}, "share of train is 1.2"),
        ({"test": 1.0}, "train has 0"),
    ],
)
def test_wrong_shares_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign_splits(build(images(a=2)), shares, 0)


def test_twins_stay_on_one_side() -> None:
    manifest = build(images(a=60, b=40))
    twins: list[str | None] = [None] * 100
    for i, k in [(0, 1), (1, 70), (20, 21), (22, 90)]:
        twins[i] = twins[k] = twins[i] or twins[k] or f"copies-{i}"
    frame = assign_splits(manifest, SHARES, 0, "label", twins)[0].frame
    for name in {t for t in twins if t}:
        sides = {s for s, t in zip(frame["split"], twins, strict=True) if t == name}
        assert len(sides) == 1, name


def test_the_note_counts_the_copies() -> None:
    twins: list[str | None] = ["x", "x", "x", *[None] * 17]
    notes = assign_splits(build(images(a=20)), SHARES, 0, "label", twins)[1]
    assert any("2 pictures that nearly repeat another" in text for text in notes.sentences)


def test_extra_rows_join_training_only_where_nothing_of_theirs_is_tested() -> None:
    split = {"p": "train", "q": "test"}
    rows = [{**row, "patient": p, "split": split[p]} for p, row in zip("pqpq", images(a=4), strict=True)]
    extra = [
        {"path": "e/0", "patient": "p"},
        {"path": "e/1", "patient": "q"},
        {"path": "e/2"},
        {"path": "e/3", "sha256": "s-a-1"},  # a copy of one of q's
        {"path": "e/4", "slide": "new"},
        {"path": "e/5", "slide": "new", "split": "test"},  # the source's own test part
        {"path": "e/6", "slide": "new", "split": "train"},
        {"path": "e/7"},
    ]
    twins = [None, "t", None, None, *[None] * 7, "t"]
    found = may_train(build([*rows, *extra]), [False] * 4 + [True] * 8, twins)
    assert found == [False] * 4 + [True, False, True, False, True, False, True, False]
