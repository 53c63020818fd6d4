"""Known against unknown cells: scikit-learn, hand-worked cases, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from morphfed.core.errors import StorageError
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.unknown import Strangers, judge_strangers, read_strangers, write_strangers

CLASSES = ("neutrophil", "monocyte")


def known(sure: list[float], right: list[bool]) -> Predictions:
    ids = np.array([f"k{i}" for i in range(len(sure))])
    labels = np.array([0 if ok else 1 for ok in right], dtype=np.int64)
    return Predictions(CLASSES, ids, labels, np.stack([sure, 1 - np.array(sure)], axis=1), ids, "image")


def strangers(sure: list[float], kinds: list[str]) -> Strangers:
    ids = np.array([f"u{i}" for i in range(len(sure))])
    return Strangers(ids, np.array(kinds), ids, np.stack([sure, 1 - np.array(sure)], axis=1).astype(np.float32))


def test_by_hand() -> None:
    met = strangers([0.6, 0.95], ["platelet", "erythroblast"])
    block = judge_strangers(known([0.9, 0.8, 0.7], [True, True, False]), met, 0.75, resamples=100)
    # pairs known > unknown: (.9, .8, .7) > .6 three times, > .95 never
    assert block["auroc"]["value"] == pytest.approx(3 / 6)
    assert block["known_accepted"] == pytest.approx(2 / 3)
    assert block["unknown_rejected"] == pytest.approx(1 / 2)
    assert block["kinds"] == {"erythroblast": {"n": 1, "rejected": 0.0}, "platelet": {"n": 1, "rejected": 1.0}}
    # surest first: unknown .95 (wrong), known .9 and .8 (right), known .7 (wrong), unknown .6 (wrong)
    assert [p["risk"] for p in block["risk_coverage"]] == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    assert json.loads(json.dumps(block, allow_nan=False)) == block


def test_auroc_is_scikit_learn_s_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    one, other = 0.5 + 0.5 * rng.random(80) ** 0.5, 0.5 + 0.5 * rng.random(60)
    block = judge_strangers(known(one.tolist(), [True] * 80), strangers(other.tolist(), ["platelet"] * 60), None)
    expected = roc_auc_score([1] * 80 + [0] * 60, np.append(one, other))
    assert block["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert block["auroc"]["low"] < expected < block["auroc"]["high"]
    assert block["known_accepted"] is None
    assert block["unknown_rejected"] is None


def test_confidence_that_rounds_to_one_is_ranked_by_its_logarithms(tmp_path: Path) -> None:
    def with_logs(odds: list[float]) -> dict[str, np.ndarray]:
        z = np.stack([odds, -np.array(odds)], axis=1)
        return {"log_probabilities": z - np.logaddexp.reduce(z, axis=1, keepdims=True)}

    one, other = known([1.0, 1.0, 1.0], [True] * 3), strangers([1.0, 1.0], ["platelet"] * 2)
    assert judge_strangers(one, other, None, resamples=20)["auroc"]["value"] == 0.5
    one, other = replace(one, **with_logs([30.0, -40.0, 50.0])), replace(other, **with_logs([35.0, -20.0]))
    write_strangers(tmp_path / "u.parquet", {"lagos": other}, CLASSES)
    block = judge_strangers(one, read_strangers(tmp_path / "u.parquet")["lagos"], None, resamples=20)
    assert block["auroc"]["value"] == pytest.approx(5 / 6)  # 30 is below 35, all other pairs are in order


def test_a_site_without_unknown_cells_still_says_how_many_known_ones_are_accepted() -> None:
    block = judge_strangers(known([0.9, 0.6], [True, True]), None, 0.75)
    assert (block["n"], block["auroc"]["value"], block["known_accepted"]) == (0, None, 0.5)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    met = strangers([0.6, 0.95], ["platelet", "erythroblast"])
    write_strangers(tmp_path / "u.parquet", {"kampala": met, "lagos": met}, CLASSES)
    found = read_strangers(tmp_path / "u.parquet")
    assert list(found) == ["kampala", "lagos"]
    for name in ("ids", "kinds", "clusters", "probabilities"):
        assert (getattr(found["lagos"], name) == getattr(met, name)).all()
    write_strangers(tmp_path / "none.parquet", {}, CLASSES)
    assert read_strangers(tmp_path / "none.parquet") == {}
    (tmp_path / "u.parquet").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"u\.parquet"):
        read_strangers(tmp_path / "u.parquet")


def test_another_temperature() -> None:
    met = strangers([0.8], ["platelet"]).tempered(0.5)
    np.testing.assert_allclose(met.probabilities, [[0.64 / 0.68, 0.04 / 0.68]], rtol=1e-6)
