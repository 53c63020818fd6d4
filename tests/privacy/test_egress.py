"""What is not declared does not leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from morphfed.core.errors import PrivacyError
from morphfed.core.types import Spec, Upload
from morphfed.privacy.egress import Declaration, EgressGate

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
