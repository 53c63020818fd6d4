"""What is not declared does not leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morphfed.core.errors import PrivacyError
from morphfed.core.types import Spec, Upload
from morphfed.privacy.egress import Declaration, EgressGate, Findings, Statistic

DECLARED = Declaration({"w": Spec((2,), "float32")}, frozenset({"loss"}), "fedavg: the model")


def _upload(**changes: object) -> Upload:
    values = {
        "site": "kampala",
        "round": 1,
        "tensors": {"w": torch.ones(2)},
        "weight": 5.0,
        "metrics": {"loss": 0.5},
    }
    return Upload(**{**values, **changes})  # type: ignore[arg-type]


def test_declared_uploads_pass_and_are_written_down(tmp_path: Path) -> None:
    gate = EgressGate("kampala", DECLARED, tmp_path / "ledger.jsonl")
    upload = _upload()
    assert gate.release(upload) is upload
    gate.release(_upload(round=2))
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    # two float32, one number and the weight at eight bytes each
    assert lines[0]["bytes"] == 2 * 4 + 2 * 8
    assert lines[0]["purpose"] == "fedavg: the model"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tensors": {"w": torch.ones(2), "images": torch.ones(2)}}, "images"),
        ({"tensors": {"w": torch.ones(3)}}, "'w'"),
        ({"tensors": {"w": torch.ones(2, dtype=torch.float64)}}, "'w'"),
        ({"metrics": {"patients": 3.0}}, "patients"),
        ({"site": "lagos"}, "lagos"),
    ],
)
def test_everything_else_is_refused_and_leaves_no_trace(changes: dict[str, object], named: str, tmp_path: Path) -> None:
    gate = EgressGate("kampala", DECLARED, tmp_path / "ledger.jsonl")
    with pytest.raises(PrivacyError, match=named):
        gate.release(_upload(**changes))
    assert not (tmp_path / "ledger.jsonl").exists()


COUNTING = Declaration({}, frozenset(), "", statistics={"class_counts": Statistic(3, "for the class prior")})


def test_a_declared_statistic_passes_and_its_numbers_are_in_the_ledger(tmp_path: Path) -> None:
    gate = EgressGate("kampala", COUNTING, tmp_path / "ledger.jsonl")
    assert gate.release_statistic("class_counts", np.array([4, 0, 1]), round_number=0).tolist() == [4, 0, 1]
    line = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert line == {
        "round": 0,
        "site": "kampala",
        "statistic": "class_counts",
        "tensors": 1,
        "bytes": 24,
        "values": [4, 0, 1],
        "purpose": "for the class prior",
    }


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [("patients", [1, 2, 3], "'patients'"), ("class_counts", [1, 2], r"\(2,\)"), ("class_counts", [[1, 2, 3]], "1, 3")],
)
def test_any_other_statistic_is_refused(name: str, values: list[int], named: str, tmp_path: Path) -> None:
    gate = EgressGate("kampala", COUNTING, tmp_path / "ledger.jsonl")
    with pytest.raises(PrivacyError, match=named):
        gate.release_statistic(name, np.array(values), round_number=0)
    assert not (tmp_path / "ledger.jsonl").exists()


TELLING = Declaration(
    {},
    frozenset(),
    "",
    findings={
        "scores": Findings(
            {("n",): 1, ("recall", "a"): 1, ("curve", "#", "risk"): 2}, {"row": Spec((3,), "float64")}, "the report"
        )
    },
)
TOLD = {"n": 4, "recall": {"a": None}, "curve": [{"risk": 0.5}, {"risk": 0.0}]}
ROWS = {"row": torch.zeros(3, dtype=torch.float64)}


def test_declared_findings_pass_and_the_ledger_holds_each_number(tmp_path: Path) -> None:
    EgressGate("kampala", TELLING, tmp_path / "l").release_findings("scores", TOLD, ROWS, round_number=7)
    line = json.loads((tmp_path / "l").read_text())
    assert line["metrics"] == {"n": 4.0, "recall/a": None, "curve/0/risk": 0.5, "curve/1/risk": 0.0}
    assert line["bytes"] == 4 * 8 + 3 * 8
    assert line["round"] == 7


@pytest.mark.parametrize(
    ("tree", "rows", "named"),
    [
        ({"name": "smith"}, {}, "a str at 'name'"),
        ({"n": "smith"}, {}, "a str at 'n'"),
        ({"n": True}, {}, "a bool at 'n'"),
        ({"recall": {"smith": 1.0}}, {}, "a number at 'recall/smith'"),
        ({"recall": {"smith": {}}}, {}, "a dict at 'recall/smith'"),
        ({"curve": [{"risk": 1}, {"risk": 1}, {"risk": 1}]}, {}, "one more number at 'curve/#/risk'"),
        ({"n": [1]}, {}, "a number at 'n/#'"),
        ({}, {"image": torch.zeros(3)}, "the row 'image'"),
        ({}, {"row": torch.zeros(4, dtype=torch.float64)}, "the row 'row' as"),
    ],
)
def test_findings_that_are_not_declared_do_not_leave(
    tree: dict[str, object], rows: dict[str, torch.Tensor], named: str, tmp_path: Path
) -> None:
    gate = EgressGate("kampala", TELLING, tmp_path / "l")
    with pytest.raises(PrivacyError, match=named):
        gate.release_findings("scores", tree, rows, round_number=1)
    with pytest.raises(PrivacyError, match="'history'"):
        gate.release_findings("history", {}, {}, round_number=1)
    assert not (tmp_path / "l").exists()
