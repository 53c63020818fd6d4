"""`morphfed doctor`: every fault that it names is put in front of it here."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from morphfed.cli import doctor
from morphfed.experiment import environment

WELL: dict[str, Any] = {
    "errors": {},
    "seconds": {"torch": 1.0, "torchvision": 1.5, "timm": 0.5},
    "gpu": [],
    "precision": {"fp32": 0.030, "bf16": 0.010, "device": "cpu"},
    "registered": 9,
    "refused": [],
    "done": True,
}


def stub(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Put modules of these sources before the installed ones, for child processes only."""
    for name, source in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {c.name: c for c in checks}


def test_this_machine_is_checked_without_network_and_without_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("doctor touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = doctor.run(json=True, runs=tmp_path / "not" / "there" / "yet")
    told = json.loads(capsys.readouterr().out)
    checks = {c["name"]: c for c in told["checks"]}
    assert code == 0, told
    assert told["status"] in ("PASS", "WARN")
    assert checks["torch"]["found"].startswith(environment.installed("torch") or "?")
    assert checks["torchvision"]["status"] == "PASS"
    assert "× as fast as fp32" in checks["precision"]["found"]
    assert int(checks["plug-ins"]["found"].split()[0]) >= 4
    assert list(tmp_path.iterdir()) == []


def test_a_torchvision_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen with torch 2.13.0+cpu and torchvision 0.28.0 built for CUDA."""
    stub(
        tmp_path,
        monkeypatch,
        torch="class cuda:\n    is_available = staticmethod(lambda: False)\n",
        torchvision="raise RuntimeError('operator torchvision::nms does not exist')\n",
        timm="import torchvision\n",
    )
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "timm": "1.0.31"}
    monkeypatch.setattr(environment, "installed", versions.get)
    rows = by_name(list(doctor.libraries(doctor._run_probe())))
    assert rows["torchvision"].status == "FAIL"
    assert "operator torchvision::nms does not exist" in rows["torchvision"].found
    assert "torch 2.13.0+cpu and torchvision 0.28.0" in rows["torchvision"].found
    assert sys.executable in rows["torchvision"].fix
    assert rows["torchvision"].fix.split()[-2:] == ["torch", "torchvision"]
    assert "same reason" in rows["timm"].found

    versions |= {"torch": "2.11.0", "torchvision": "0.25.0"}  # the version is wrong: torch is kept
    rows = by_name(list(doctor.libraries(doctor._run_probe())))
    assert rows["torchvision"].fix.endswith("--no-deps 'torchvision==0.26.*'")


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n", "ended by signal 4"),
        ("import os\nos._exit(3)\n", "ended with status 3"),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')\n", "libcudart.so.12"),
        ("import time\ntime.sleep(60)\n", "no answer within 3 s"),
        (
            "print('{noise')\nprint('[1]')\nraise OSError('cannot allocate memory')\n",
            "cannot allocate memory",
        ),
    ],
)
def test_a_torch_that_does_not_start_is_a_finding_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, expected: str
) -> None:
    stub(tmp_path, monkeypatch, torch=torch, torchvision="import torch\n", timm="import torch\n")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 3)
    probed = doctor._run_probe()
    row = by_name(list(doctor.libraries(probed)))["torch"]
    assert row.status == "FAIL"
    assert expected in row.found
    assert "install" in row.fix
    assert doctor.precision(probed).status == "WARN"
    assert doctor.plugins(probed).status == "WARN"


@pytest.mark.parametrize(
    ("torch", "torchvision", "fits"),
    [
        ("2.6.0", "0.21.0", True),
        ("2.11.0+cu128", "0.26.0+cu128", True),
        ("2.13.0+cpu", "0.28.0", True),
        ("2.14.1", "0.29.0", True),
        ("2.15.0", "0.29.2", True),
        ("2.16.0.dev20261101", "0.30.0a0", True),
        ("2.15.0", "0.28.0", False),
        ("2.11.0", "0.29.2", False),
        ("2.5.1", "0.21.0", False),
        ("2.12.0", "0.26.0", False),
    ],
)
def test_pairs(torch: str, torchvision: str, fits: bool) -> None:
    assert doctor.is_pair(torch, torchvision) is fits


def test_the_installed_pair_agrees_with_its_own_metadata() -> None:
    """torchvision's package metadata is the source of the rule."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    needs = next(r for r in map(Requirement, requires("torchvision") or []) if r.name == "torch")
    torch, vision = environment.installed("torch"), environment.installed("torchvision")
    assert torch is not None
    assert vision is not None
    assert doctor.is_pair(torch, vision) == needs.specifier.contains(torch, prereleases=True)


def test_a_pair_that_starts_but_does_not_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.15.0", "torchvision": "0.28.0", "timm": "1.0.31"}
    monkeypatch.setattr(environment, "installed", versions.get)
    row = by_name(list(doctor.libraries(WELL)))["torchvision"]
    assert (row.status, row.fix.split()[-1]) == ("WARN", "'torchvision>=0.29'")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.installed
    monkeypatch.setattr(environment, "installed", lambda n: None if n in ("timm", "scipy") else real(n))
    row = doctor.packages()
    assert row.status == "FAIL"
    assert sorted(row.found.removeprefix("not installed: ").split(", ")) == ["scipy", "timm"]
    assert set(row.fix.split()[-2:]) == {"scipy", "timm"}
    assert by_name(list(doctor.libraries(WELL)))["timm"].found == "not installed"


def test_a_half_installed_extra_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"morphfed", "fastapi", "onnx", "onnxruntime"}
    monkeypatch.setattr(environment, "installed", lambda n: "1" if n in there else None)
    row = doctor.extras()
    assert row.status == "WARN"
    assert row.found.startswith("installed: export; not installed: ")
    assert "web lacks uvicorn" in row.found
    assert row.fix.endswith(" uvicorn")
    there.discard("fastapi")
    assert doctor.extras().status == "PASS"  # not wanted is no fault


def test_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free, status in ((100, "PASS"), (3, "WARN"), (0.1, "FAIL")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, f=free: usage(0, 0, f * 2**30))
        row = doctor.disk(tmp_path / "runs")
        assert row.status == status
        assert f"{free:.1f} GiB free" in row.found
    assert not (tmp_path / "runs").exists()

    for code, expected in ((errno.EROFS, "read-only file system"), (errno.ENOSPC, "no space left")):

        def refuse(*_: Any, code: int = code, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
        row = doctor.disk(tmp_path / "runs")
        assert row.status == "FAIL"
        assert expected in row.found
        assert "--runs" in row.fix

    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert doctor.disk(tmp_path / "file").status == "FAIL"
    assert doctor.disk(tmp_path / "file" / "runs").status == "FAIL"


def test_threads_memory_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 2)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert doctor.threads().status == "PASS"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert doctor.threads().fix == "export OMP_NUM_THREADS=2"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)  # a container with a quota of two cores
    assert doctor.threads().found == "2 of the machine's 64"

    for gib, status in ((2, "WARN"), (16, "PASS"), (0, "PASS")):
        monkeypatch.setattr(environment, "memory_bytes", lambda g=gib: g * 2**30)
        assert doctor.memory().status == status

    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"sse2"}))
    assert doctor.processor().status == "WARN"
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"sse2", "avx2", "amx_bf16"}))
    assert "AVX2, AMX bf16" in doctor.processor().found


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "H200" in doctor.gpu({"gpu": ["NVIDIA H200, 140 GiB, CUDA 12.8"]}).found
    monkeypatch.setattr(doctor.Path, "exists", lambda _: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.gpu(WELL).status == "PASS"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    row = doctor.gpu(WELL)
    assert row.status == "WARN"
    assert "cannot use it" in row.found


def test_weights_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert doctor.weights().found == "0 in the hub's cache"
    for name in ("models--timm--resnet34.a1_in1k", "models--timm--half_fetched"):
        (tmp_path / name / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--timm--resnet34.a1_in1k/snapshots/abc/model.safetensors").touch()
    (tmp_path / "models--timm--half_fetched/snapshots/abc/model.safetensors").symlink_to("nowhere")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert doctor.weights().found == "1 in the hub's cache: timm/resnet34.a1_in1k; offline mode"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert doctor.weights().status == "WARN"


def test_the_table_prints_fixes_unbroken_and_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(doctor, "_run_probe", lambda: WELL)
    assert doctor.run(runs=tmp_path) == 0
    out = capsys.readouterr().out
    assert "14 checks, 0 failed" in out
    assert out.rstrip().endswith("next: morphfed demo")

    error = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "_run_probe", lambda: {**WELL, "errors": {"torchvision": error}})
    assert doctor.run(runs=tmp_path) == 1
    out = capsys.readouterr().out
    fix = next(line for line in out.splitlines() if line.startswith("fix torchvision: "))
    assert fix.endswith("torch torchvision")
    assert "FAIL" in out
    assert "morphfed demo" not in out


def test_broken_plugins_of_other_packages_are_shown() -> None:
    row = doctor.plugins({**WELL, "refused": ["algorithm 'x' of package 'y' cannot be loaded: z"]})
    assert row.status == "WARN"
    assert "package 'y'" in row.found


def test_doctor_itself_starts_without_torch() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "from morphfed.cli import doctor\n"
        "doctor._run_probe = lambda: {'errors': {'torch': 'x'}, 'seconds': {}}\n"
        "sys.exit(doctor.run())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "does not start: x" in done.stdout
