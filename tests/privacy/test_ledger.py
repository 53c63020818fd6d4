"""A ledger shows any later change, and nothing leaves before it is written down."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from morphfed.core.errors import PrivacyError, StorageError
from morphfed.core.types import Spec, Upload
from morphfed.privacy.egress import Declaration, EgressGate, Statistic
from morphfed.privacy.ledger import START, ChainedLedger, records, verify

DECLARED = Declaration(
    {"w": Spec((2, 2), "bfloat16"), "n": Spec((), "int64")},
    frozenset({"loss"}),
    "fedavg: the model",
    frozenset({"macro_f1"}),
    {"counts": Statistic(3, "for the class prior")},
)


def _upload(number: int, **more: torch.Tensor) -> Upload:
    tensors = {"w": torch.full((2, 2), float(number), dtype=torch.bfloat16), "n": torch.tensor(7)}
    return Upload("kampala", number, tensors | more, 5.0, {"loss": 0.5})


def _filled(path: Path, rounds: int = 4) -> ChainedLedger:
    ledger = ChainedLedger(path)
    gate = EgressGate("kampala", DECLARED, ledger.about(study="abc"))
    for number in range(1, rounds + 1):
        gate.release(_upload(number))
    return ledger


def test_a_record_holds_what_left_with_a_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    gate = EgressGate("kampala", DECLARED, ChainedLedger(path).about(study="abc", unit="fedavg/all/seed-0"))
    gate.release(_upload(3))
    gate.release_validation(3, {"kampala": {"macro_f1": 0.25}})
    gate.release_statistic("counts", np.array([4, 0, 2]), round_number=0)
    upload, validation, counts = records(path)
    assert (upload["study"], upload["unit"], upload["site"], upload["round"]) == (
        "abc",
        "fedavg/all/seed-0",
        "kampala",
        3,
    )
    assert upload["purpose"] == "fedavg: the model"
    assert upload["noise"] == "none"
    items = {item["name"]: item for item in upload["items"]}
    # 3.0 in bfloat16 is 0x4040, little-endian, four times.
    assert items["w"] == {
        "name": "w",
        "shape": [2, 2],
        "dtype": "bfloat16",
        "bytes": 8,
        "sha256": hashlib.sha256(b"\x40\x40" * 4).hexdigest(),
    }
    assert items["n"]["bytes"] == 8
    assert items["loss"] == {"name": "loss", "value": 0.5, "bytes": 8}
    assert items["weight"]["value"] == 5.0
    assert validation["items"] == [{"name": "kampala/macro_f1", "value": 0.25, "bytes": 8}]
    assert counts["items"][0]["values"] == [4, 0, 2]
    assert sum(item["bytes"] for item in upload["items"]) == upload["bytes"]


def test_noise_is_on_record_as_it_was_added(tmp_path: Path) -> None:
    gate = EgressGate("kampala", DECLARED, ChainedLedger(tmp_path / "l"))
    gate.release(_upload(1), noise={"kind": "calibrated", "clip": 1.0, "epsilon": 3.5})
    (record,) = records(tmp_path / "l")
    assert record["noise"] == {"kind": "calibrated", "clip": 1.0, "epsilon": 3.5}


def test_the_chain_is_the_one_that_the_page_describes(tmp_path: Path) -> None:
    """Recomputed here from the words of the module: SHA-256 over the record's own text without its hash."""
    _filled(tmp_path / "l", 3)
    before = START
    for line in (tmp_path / "l").read_text().splitlines():
        body, _, last = line.rpartition(',"hash":"')
        digest = hashlib.sha256((body + "}").encode()).hexdigest()
        assert last == digest + '"}'
        assert json.loads(line)["previous"] == before
        before = digest
    assert verify(tmp_path / "l").head == before


def _altered(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"value":0.5', b'"value":0.4'), *lines[2:]]


def _reordered_keys(lines: list[bytes]) -> list[bytes]:
    found = json.loads(lines[1])
    return [lines[0], json.dumps(dict(reversed(found.items()))).encode() + b"\n", *lines[2:]]


@pytest.mark.parametrize(
    ("change", "line", "why"),
    [
        (_altered, 2, "altered after"),
        (_reordered_keys, 2, "altered after"),
        (lambda lines: [lines[0], *lines[2:]], 2, "removed, put in or altered"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2, "removed, put in or altered"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2, "removed, put in or altered"),
        (lambda lines: lines[1:], 1, "removed, put in or altered"),
        (lambda lines: [*lines[:2], b"nonsense\n", *lines[3:]], 3, "not JSON"),
        (lambda lines: [*lines[:2], b"[]\n", *lines[3:]], 3, "no record"),
    ],
)
def test_any_change_is_found_and_the_first_broken_record_named(
    change: object, line: int, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    _filled(path)
    assert verify(path).sound
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))  # type: ignore[operator]
    found = verify(path)
    assert (found.line, found.records) == (line, line - 1)
    assert why in found.why
    with pytest.raises(StorageError, match=f"line {line}"):
        ChainedLedger(path)


def test_a_record_whose_hash_was_made_again_breaks_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _filled(path)
    lines = path.read_text().splitlines()
    forged = json.loads(lines[1])
    del forged["hash"]
    forged["items"] = []
    text = json.dumps(forged, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    lines[1] = text[:-1] + f',"hash":"{digest}"' + "}"
    path.write_text("\n".join(lines) + "\n")
    assert verify(path).line == 3


def test_a_cut_off_end_shows_against_the_hash_that_was_noted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    noted = _filled(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(path).sound
    assert verify(path).head != noted


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_record_torn_by_a_crash_is_set_aside_and_noted(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _filled(path, 2)
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    torn = content[start:-1] if kept == -1 else content[start : start + kept]
    path.write_bytes(content[:start] + torn)
    ledger = ChainedLedger(path)
    first, repair = records(path)
    assert (first["round"], repair["kind"], ledger.records) == (1, "repair", 2)
    assert (tmp_path / "ledger.torn").read_bytes() == torn + b"\n"
    assert verify(path).sound


def test_what_is_not_declared_leaves_neither_the_site_nor_a_record(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    gate = EgressGate("kampala", DECLARED, ChainedLedger(path))
    with pytest.raises(PrivacyError, match="images"):
        gate.release(_upload(1, images=torch.ones(4, 3, 8, 8)))
    with pytest.raises(PrivacyError, match="patients"):
        gate.release_validation(1, {"kampala": {"patients": 3.0}})
    with pytest.raises(PrivacyError, match="labels"):
        gate.release_statistic("labels", np.arange(3), round_number=1)
    assert not path.exists()


def test_the_record_is_on_the_disk_before_the_upload_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), sync(handle))[1])
    path = tmp_path / "ledger.jsonl"
    gate = EgressGate("kampala", DECLARED, ChainedLedger(path))
    gate.release(_upload(1))
    assert synced == [path.stat().st_size]


def test_nothing_leaves_when_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gate = EgressGate("kampala", DECLARED, ChainedLedger(tmp_path / "ledger.jsonl"))
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(StorageError, match="ledger"):
        gate.release(_upload(1))
