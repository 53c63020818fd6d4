"""Dice, IoU and distance against MONAI and by hand; cases judged like other predictions."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from morphfed.core.errors import DataError, StorageError
from morphfed.core.seeding import numpy_stream
from morphfed.evaluation import masks as m
from morphfed.evaluation.cases import Cases, CaseScores, evaluate_cases, read_cases, write_cases
from morphfed.evaluation.compare import UnitPredictions, compare_pairs, summarise


def blobs(n: int, seed: int, structures: int = 2, side: int = 24) -> np.ndarray:
    """Masks with a few overlapping discs, some at the edge; a structure may be lacking."""
    rng = numpy_stream(seed, "blobs")
    rows, columns = np.indices((side, side))
    masks = np.zeros((n, side, side), dtype=np.uint8)
    for i in range(n):
        for k in range(1, structures + 1):
            for _ in range(rng.integers(0, 3)):
                y, x, r = (*rng.integers(0, side, 2).tolist(), int(rng.integers(2, 8)))
                masks[i][(rows - y) ** 2 + (columns - x) ** 2 < r * r] = k
    return masks


def one_hot(masks: np.ndarray, structures: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(masks).long(), structures + 1).movedim(-1, 1)


def test_against_monai() -> None:
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    truth, drawn = blobs(60, 1), blobs(60, 2)
    pixels = m.overlaps(truth, drawn, 2)
    t, p = one_hot(truth, 2), one_hot(drawn, 2)
    dice = compute_dice(p, t, include_background=False, ignore_empty=False).numpy()
    iou = compute_iou(p, t, include_background=False, ignore_empty=False).numpy()
    neither = (pixels[1] == 0) & (pixels[2] == 0)
    assert neither.any()
    for mine, theirs in ((m.dice(*pixels), dice), (m.iou(*pixels), iou)):
        assert np.isnan(mine[neither]).all()  # theirs is 1 there, or with ignore_empty NaN
        assert np.allclose(mine[~neither], theirs[~neither], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far = compute_hausdorff_distance(p, t, include_background=False, percentile=95).numpy()
    mine = m.distances(truth, drawn, 2)
    shown = (pixels[1] > 0) & (pixels[2] > 0)
    assert shown.sum() > 30
    assert np.allclose(mine[shown], far[shown], atol=1e-5)
    assert np.isnan(mine[~shown]).all()


def test_by_hand() -> None:
    truth, drawn = np.zeros((2, 1, 8, 8), dtype=np.uint8)
    truth[0, 2:4, 2:6] = 1  # 8 pixels
    drawn[0, 2:4, 4:8] = 1  # 8 pixels, 4 of them in both
    pixels = m.overlaps(truth, drawn, 1)
    assert [v.tolist() for v in pixels] == [[[4.0]], [[8.0]], [[8.0]]]
    assert m.dice(*pixels).item() == 0.5
    assert m.iou(*pixels).item() == pytest.approx(1 / 3)
    # Every pixel is on the border; distances to the other are 2, 1, 0, 0 twice each way: 95th percentile 2.
    assert m.hausdorff95(truth[0] == 1, drawn[0] == 1) == 2.0
    # One pixel against a far one; and a filled square against itself.
    a, b = np.zeros((2, 10, 10), dtype=bool)
    a[0, 0], b[3, 4] = True, True
    assert m.hausdorff95(a, b) == 5.0
    assert m.hausdorff95(truth[0] == 1, truth[0] == 1) == 0.0


def test_empty_masks() -> None:
    empty, square = np.zeros((2, 1, 6, 6), dtype=np.uint8)
    square[0, 1:4, 1:4] = 1
    for truth, drawn, expected in ((empty, empty, np.nan), (square, empty, 0.0), (empty, square, 0.0)):
        pixels = m.overlaps(truth, drawn, 1)
        for value in (m.dice(*pixels).item(), m.iou(*pixels).item()):
            assert value == expected or (np.isnan(value) and np.isnan(expected))
        assert np.isnan(m.distances(truth, drawn, 1)).all()


def test_validation_is_the_mean_over_cases_then_structures() -> None:
    truth, drawn = blobs(20, 3), blobs(20, 4)
    dice = m.dice(*m.overlaps(truth, drawn, 2))
    expected = np.mean([np.nanmean(dice[:, k]) for k in range(2)])
    assert m.validation_metrics(truth, drawn)["dice"] == pytest.approx(expected)
    nothing = np.zeros((2, 4, 4), dtype=np.uint8)
    assert m.validation_metrics(nothing, nothing) == {}  # such a site does not choose the round


def cases(seed: int, n: int = 30, *, patients: int | None = None, scale: float = 0.1) -> Cases:
    """One truth for all seeds, so that models can be compared."""
    truth, noise = blobs(n, 0), blobs(n, seed)
    drawn = np.where(numpy_stream(seed, "keep").random(truth.shape) < 0.7, truth, noise)
    ids = np.array([f"s/{i}" for i in range(n)])
    clusters = np.array([f"p{i % patients}" for i in range(n)]) if patients else ids
    return Cases.of(
        truth, drawn, structures=("nucleus", "cytoplasm"), ids=ids, clusters=clusters,
        cluster_unit="patient" if patients else "image", um_per_px=np.full(n, scale),
    )  # fmt: skip


def test_a_weight_means_copies() -> None:
    c = cases(5)
    weights = numpy_stream(0, "w").integers(0, 3, len(c)).astype(np.float64)
    copied = c.at(np.repeat(np.arange(len(c)), weights.astype(int)))
    for name, value in c.means(weights).items():
        assert value == pytest.approx(float(copied.means()[name])), name


def test_the_block_of_a_site() -> None:
    c = cases(5, patients=6)
    block = evaluate_cases(c, role="train", resamples=300)
    dice = c.values("dice")
    assert block["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(dice, axis=0).mean())
    each = block["structures"]["nucleus"]
    assert each["dice"]["value"] == pytest.approx(np.nanmean(dice[:, 0]))
    assert each["dice"]["low"] < each["dice"]["value"] < each["dice"]["high"]
    assert each["hd95_um"]["value"] == pytest.approx(0.1 * each["hd95_px"]["value"])
    assert each["n"] == int((c.truth_px[:, 0] > 0).sum())
    assert (block["clusters"], block["cluster_unit"]) == (6, "patient")
    unknown = evaluate_cases(cases(5, scale=float("nan")), role="train", resamples=100)
    assert unknown["metrics"]["hd95_um"] == {"value": None, "low": None, "high": None}
    assert unknown["metrics"]["hd95_px"]["value"] is not None


def test_what_was_missed_and_what_was_drawn_for_nothing() -> None:
    truth, drawn = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    truth[:2, 2:5, 2:5] = 1
    drawn[[0, 2], 2:5, 2:5] = 1
    ids = np.array(["a", "b", "c"])
    c = Cases.of(truth, drawn, structures=("nucleus", "cytoplasm"), ids=ids, clusters=ids, cluster_unit="image",
                 um_per_px=np.full(3, np.nan))  # fmt: skip
    block = evaluate_cases(c, role="train", resamples=100)
    nucleus, cytoplasm = block["structures"]["nucleus"], block["structures"]["cytoplasm"]
    assert (nucleus["n"], nucleus["missed"], nucleus["false"]) == (2, 1, 1)
    assert nucleus["dice"]["value"] == pytest.approx(1 / 3)
    assert nucleus["hd95_px"]["value"] == 0.0
    assert cytoplasm["dice"]["value"] is None
    assert block["metrics"]["dice"]["value"] == pytest.approx(1 / 3)  # over the structures that are there
    assert any("No test image shows cytoplasm" in note for note in block["notes"])
    assert any(note.startswith("2 times") for note in block["notes"])


def test_written_and_read_again(tmp_path: Path) -> None:
    written = {"tecom": cases(5, patients=4), "empty": cases(5).at(np.array([], dtype=np.int64)), "b": cases(6)}
    write_cases(tmp_path / "c.parquet", written)
    found = read_cases(tmp_path / "c.parquet")
    assert list(found) == list(written)
    for site, c in written.items():
        assert (found[site].structures, found[site].cluster_unit) == (c.structures, c.cluster_unit)
        for name in c.rowwise:
            assert np.array_equal(getattr(found[site], name), getattr(c, name), equal_nan=name[0] in "hu"), name
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match="cannot be read as cases"):
        read_cases(tmp_path / "c.parquet")


def unit(model: str, **sites: Cases) -> UnitPredictions:
    return UnitPredictions(model, model, model, 0, tuple(sites), sites, dict.fromkeys(sites, "train"))


def test_models_are_compared_on_the_same_resamples() -> None:
    scores = CaseScores([unit("a", x=cases(5), y=cases(7)), unit("b", x=cases(6), y=cases(7))], resamples=400)
    rows = {(r["model"], r["scope"], r["metric"]): r for r in summarise(scores)}
    expected = np.nanmean(cases(5).values("iou"), axis=0)[1]
    assert rows["a", "x", "iou/cytoplasm"]["mean"] == pytest.approx(expected)
    worst = [rows["a", s, "hd95_px"]["mean"] for s in ("x", "y", "worst_training")]
    assert worst[2] == max(worst[:2])  # more is worse
    found = {(c["metric"], c["scope"]): c for c in compare_pairs(scores, [("a", "b")], scores.compared)}
    assert set(scores.compared) == {"dice", "iou", "hd95_px", "dice/nucleus", "dice/cytoplasm"}
    same = found["dice", "y"]
    assert (same["difference"], same["low"], same["high"]) == (0.0, 0.0, 0.0)  # paired: identical masks never differ
    other = found["dice", "x"]
    means = [rows[name, "x", "dice"]["mean"] for name in "ab"]
    assert other["difference"] == pytest.approx(means[0] - means[1])


def test_models_judged_on_other_masks_are_refused() -> None:
    c = cases(5)
    turned = Cases(c.structures, c.ids, c.clusters, c.cluster_unit, c.truth_px[::-1], c.predicted_px, c.both_px,
                   c.hd95_px, c.um_per_px)  # fmt: skip
    with pytest.raises(DataError, match="other images than model 'a'"):
        CaseScores([unit("a", x=c), unit("b", x=turned)], resamples=100)
