"""Atomic files: full disk, read-only folder, kill in the middle: the old content or the new, never half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphfed.core.errors import StorageError
from morphfed.core.files import (
    read_json,
    sha256_file,
    sha256_text,
    storage_error,
    write_bytes,
    write_json,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_make_the_folder_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "units" / "fedavg" / "unit.json"
    write_text(path, "µ × –\n")
    assert path.read_bytes() == "µ × –\n".encode()
    write_bytes(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert names(path.parent) == ["unit.json"]


def test_a_result_is_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "result", "x")
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", ["make", "write", "sync", "rename"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: int) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"round 3")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    if moment == "make":
        monkeypatch.setattr(tempfile, "mkstemp", full)
    elif moment == "sync":
        monkeypatch.setattr(os, "fsync", full)
    elif moment == "rename":
        monkeypatch.setattr(Path, "replace", full)

    def write_round_4() -> None:
        with writing(path) as temporary:
            temporary.write_bytes(b"round")
            if moment == "write":
                full()
            temporary.write_bytes(b"round 4")

    with pytest.raises(StorageError, match=r"disk is full: .*last\.safetensors") as caught:
        write_round_4()
    assert "free some space" in caught.value.fix
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert path.read_bytes() == b"round 3"
    assert names(tmp_path) == ["last.safetensors"]  # the part that was written does not fill the disk further


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_write_that_the_kernel_cuts_short_keeps_the_old_file(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from morphfed.core.errors import StorageError\n"
        "from morphfed.core.files import write_bytes\n"
        "write_bytes(Path('last.bin'), b'old')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_bytes(Path('last.bin'), b'n' * 100_000)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "last.bin could not be written" in done.stdout
    assert (tmp_path / "last.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["last.bin"]


def test_read_only_folder(tmp_path: Path) -> None:
    program = (
        "import os, tempfile\n"
        "from pathlib import Path\n"
        "from morphfed.core.errors import StorageError\n"
        "from morphfed.core.files import write_text\n"
        "if os.geteuid() == 0:\n"
        "    os.seteuid(65534)\n"  # root may write everywhere
        "for path in (Path('here.json'), Path('new/folder/here.json')):\n"
        "    try:\n"
        "        write_text(path, 'x')\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
    )
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    finally:
        tmp_path.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "here.json cannot be written: permission denied" in line
        assert "--runs DIR" in line
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_read_only_errors_name_another_folder_as_the_fix(code: int) -> None:
    error = storage_error(Path("runs/a.json"), OSError(code, os.strerror(code)))
    assert "runs/a.json cannot be written" in error.message
    assert "--runs DIR" in error.fix


def test_other_write_errors_say_what_the_system_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        write_text(tmp_path / "file" / "below.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="could not be written"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, StorageError("x", fix="y")])
def test_what_is_raised_while_writing_comes_out_unchanged(tmp_path: Path, interruption: Any) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    kind = interruption if isinstance(interruption, type) else type(interruption)
    with pytest.raises(kind), writing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise interruption
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_disk_that_vanishes_does_not_hide_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(StorageError, match="cannot be written: read-only"), writing(tmp_path / "a"):  # noqa: PT012
        monkeypatch.setattr(Path, "unlink", gone)
        gone()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed at many moments, the file is always one that the writer meant to write, to the last byte."""
    program = (
        "import itertools\n"
        "from pathlib import Path\n"
        "from morphfed.core.files import write_json\n"
        "for n in itertools.count(1):\n"
        "    write_json(Path('state.json'), {'round': n, 'weights': [n] * 20_000})\n"
        "    print(n, flush=True)\n"
    )
    moments = random.Random(0)
    seen = []
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()  # the first write is done
        time.sleep(moments.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split()]
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
        assert state["weights"] == [state["round"]] * 20_000
        assert state["round"] >= max(told, default=1)  # what was reported as written is there
        seen.append(state["round"])
    assert max(seen) > 1  # at least one was killed while it replaced an older file


def test_json_has_no_nan_and_takes_arrays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(
        path,
        {
            "auroc": float("nan"),
            "inf": [float("inf"), -float("inf"), np.float32("nan")],
            "numpy": np.array([[1, 2], [3, 4]], dtype=np.int16),
            "scalar": np.float64(0.5),
            "flag": np.bool_(True),
            "tensor": torch.tensor([1.5, float("nan")]),
            "zero-dim": torch.tensor(2),
            "tuple": (1, "µ"),
            3: None,
        },
    )
    text = path.read_text(encoding="utf-8")
    assert "µ" in text
    assert text.endswith("}\n")
    assert read_json(path) == {
        "auroc": None,
        "inf": [None, None, None],
        "numpy": [[1, 2], [3, 4]],
        "scalar": 0.5,
        "flag": True,
        "tensor": [1.5, None],
        "zero-dim": 2,
        "tuple": [1, "µ"],
        "3": None,
    }


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"round": 1})
    with pytest.raises(TypeError):
        write_json(path, {"round": {1, 2}})
    assert read_json(path) == {"round": 1}


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere\.json does not exist"):
        read_json(tmp_path / "nowhere.json")
    for content in (b'{"round": 1', b"", b"\xff\xfe\x00"):
        damaged = tmp_path / "damaged.json"
        damaged.write_bytes(content)
        with pytest.raises(StorageError, match=r"damaged\.json cannot be read") as caught:
            read_json(damaged)
        assert "restore the file or remove it" in caught.value.fix
    with pytest.raises(StorageError, match="cannot be read"):
        read_json(tmp_path)


def test_hashes(tmp_path: Path) -> None:
    # NIST FIPS 180-4's example: SHA-256 of "abc".
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == sha256_text("abc") == known
    assert sha256_text("µ") == hashlib.sha256(b"\xc2\xb5").hexdigest()
