"""A disk that is full stops a run with an error that says so; with room made the same command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_deployed import Consortium
from tests.links import FakeClock, MemoryLink

from morphfed.core.errors import StorageError
from morphfed.core.files import sha256_file
from morphfed.deploy import coordinator
from morphfed.federation.transports.parcel import unpack


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MB of its own: a run of this study takes 160."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine does not let a small disk be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def _fill(place: Path, leave: int) -> Path:
    """A file that leaves so many bytes."""
    filler = place / "filler"
    free = shutil.disk_usage(place).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return filler


@pytest.mark.parametrize("leave", [0, 1 << 20, 30 << 20], ids=["none", "a little", "not enough"])
def test_at_the_coordinator(leave: int, tiny: Path, tmp_path: Path, small: Path) -> None:
    right = Consortium(tiny, tmp_path / "right").train()
    consortium = Consortium(tiny, tmp_path / "other")
    (consortium.made.folder / "run").symlink_to(small)
    link, full = consortium.link(), []

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        if unpack(question, limit=1 << 26).head.get("round") == 2 and not full:
            full.append(_fill(small, leave))
        return [answer]

    link.change = change
    with pytest.raises(StorageError, match="disk is (nearly )?full") as raised:
        consortium.train(link)
    assert raised.value.exit_code == 7
    assert "run the same command again" in raised.value.fix
    full[0].unlink()
    there = consortium.train()
    for name in ("best", "last"):
        assert sha256_file(there / f"{name}.safetensors") == sha256_file(right / f"{name}.safetensors")


def test_at_a_site(tiny: Path, tmp_path: Path, small: Path) -> None:
    right = Consortium(tiny, tmp_path / "right").train()
    other = tmp_path / "other"
    (other / "machines").mkdir(parents=True)
    (other / "machines/birch").symlink_to(small)
    consortium = Consortium(tiny, other)
    link, full = consortium.link(), []
    resident = consortium.residents["birch"]

    def answer(content: bytes) -> bytes:
        if unpack(content, limit=1 << 26).head.get("round") == 2 and not full:
            full.append(_fill(small, 0))
        return resident.answer(content)

    link.desks = {**link.desks, "birch": answer}
    # Its ledger comes first: what cannot be written down does not leave, not even a refusal.
    with pytest.raises(StorageError, match="disk is full"):
        consortium.train(link)
    full[0].unlink()
    consortium.residents["birch"] = consortium.join("birch", consent=False)  # started again
    there = consortium.train()
    assert sha256_file(there / "last.safetensors") == sha256_file(right / "last.safetensors")


def test_a_site_whose_state_cannot_be_written_says_so_and_ends(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the ledger, but none for the state: the coordinator hears a refusal, then the process stops."""
    consortium = Consortium(tiny, tmp_path)
    resident = consortium.residents["birch"]

    def full(*_: object) -> None:
        raise StorageError("The disk is full: state could not be written.", fix="free some space.")

    monkeypatch.setattr("morphfed.federation.transports.desk.RoundStates.save", full)
    link = MemoryLink({"alder": resident.answer, "birch": resident.answer}, FakeClock())
    link.desks = {name: each.answer for name, each in consortium.residents.items()}
    with pytest.raises(Exception, match="error MF060 at the site"):
        consortium.train(link)
    assert resident.failed is not None
    assert "disk is full" in resident.failed.message


def test_too_little_room_is_noticed_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 95, 5))
    coordinator.check_room(tmp_path, 5)
    with pytest.raises(StorageError, match="5 bytes are free") as raised:
        coordinator.check_room(tmp_path, 6)
    assert raised.value.exit_code == 7
