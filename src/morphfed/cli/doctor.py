"""`morphfed doctor`: is this machine fit for a study? One line a check, and the fix for what is not.

No check touches the network but those of ``--federation``. Imports that may crash or hang (torch, torchvision) run in
another process.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import requires
from importlib.util import find_spec
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any

from morphfed.core.check import Check, Verdict
from morphfed.experiment import environment

PROBE_SECONDS = 180
GIB = 2**30
_MISSING_OPERATOR = "operator torchvision::nms does not exist"


def run(json: bool = False, runs: Path = Path("runs"), federation: Path | None = None) -> int:
    """Check this machine: Python, torch and its pair, speed, memory, disk, extras.

    With --federation instead what a federation over a network needs: versions, certificates, name, port, TLS, clock,
    key, disk, speed. That connects to the coordinator and sends it up to 5.4 MB without meaning.

    Args:
        json: print machine-readable JSON instead of the table.
        runs: folder that runs are going to be written to.
        federation: check what a federation over a network needs instead, and connect to it: a site's join bundle
            (.zip) or folder; at the coordinator the federation's folder.

    Returns:
        0, or 1 if a check failed.
    """
    started = time.monotonic()
    checks = _machine(Path(runs)) if federation is None else _federation(federation)
    worst: Verdict = max((c.status for c in checks), key=["PASS", "WARN", "FAIL"].index)
    if json:
        print(dumps({"status": worst, "checks": [asdict(c) for c in checks]}, indent=2, ensure_ascii=False))
    else:
        after = "morphfed demo" if federation is None else _after(federation)
        _print(checks, worst, time.monotonic() - started, after)
    return 1 if worst == "FAIL" else 0


def _machine(runs: Path) -> list[Check]:
    checks = [python(), packages()]
    probed = _run_probe()
    checks += [*libraries(probed), processor(), threads(), memory(), gpu(probed), disk(runs)]
    return [*checks, precision(probed), weights(), extras(), plugins(probed)]


def _federation(path: Path) -> list[Check]:
    from morphfed.deploy.checkup.run import run as check

    return list(check(path))


def _after(federation: Path) -> str:
    if (federation / "federation.toml").is_file():
        return f"morphfed coordinator start {federation}"
    return "morphfed site join BUNDLE --data MANIFEST --folder FOLDER"


def python() -> Check:
    """The interpreter's version."""
    found = environment.platform_name()
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Check("python", "PASS", f"{sys.version.split()[0]} on {found}")
    return Check(
        "python",
        "FAIL",
        f"{sys.version.split()[0]}, not 3.11 to 3.13",
        "make setup PYTHON=/path/to/python3.12",
    )


def packages() -> Check:
    """Every package that morphfed itself needs is installed (whether torch starts is another check)."""
    if environment.installed("morphfed") is None:
        return Check("packages", "FAIL", "morphfed is not installed here", _install("--editable", "."))
    needed = [_name(r) for r in requires("morphfed") or [] if "extra ==" not in r]
    missing = [name for name in needed if environment.installed(name) is None]
    if missing:
        return Check("packages", "FAIL", f"not installed: {', '.join(missing)}", _install(*missing))
    return Check("packages", "PASS", f"all {len(needed)} installed")


def libraries(probed: dict[str, Any]) -> Iterator[Check]:
    """torch, torchvision and timm start, and torch and torchvision are a pair."""
    first_error = ""
    for name in ("torch", "torchvision", "timm"):
        error = probed["errors"].get(name, "")
        version = environment.installed(name)
        if version is None:
            yield Check(name, "FAIL", "not installed", _install("torch", "torchvision", "timm"))
        elif error and error == first_error:
            yield Check(name, "FAIL", f"{version} does not start, for the same reason", "the one above.")
        elif error:
            first_error = error
            reason, fix = _import_problem(error)
            yield Check(name, "FAIL", f"{version} does not start: {error}{reason}", fix)
        elif name == "torchvision" and not is_pair(environment.installed("torch") or "0.0", version):
            torch = environment.installed("torch")
            yield Check(name, "WARN", f"{version} was not made for torch {torch}", _pair_fix())
        elif name in probed["seconds"]:
            yield Check(name, "PASS", f"{version}, starts in {probed['seconds'][name]:.1f} s")
        else:
            yield Check(name, "WARN", f"{version}, not started: one before it ended the process", "the one above.")


def is_pair(torch: str, torchvision: str) -> bool:
    """Whether two versions belong together.

    torchvision names its torch in its package metadata: exactly one up to torchvision 0.28 (0.26 with 2.11,
    0.28 with 2.13); from 0.29 on, torch 2.14 or newer.
    """
    (torch_major, torch_minor), (_, vision_minor) = _release(torch), _release(torchvision)
    if vision_minor >= 29:
        return (torch_major, torch_minor) >= (2, 14)
    return torch_major == 2 and vision_minor == torch_minor + 15


def _release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version + ".0")[:2]
    return int(major), int(minor)


def _pair_fix() -> str:
    """Reinstall torchvision to suit a torch that starts (on GPU machines torch is the one to keep)."""
    _, minor = _release(environment.installed("torch") or "0.0")
    wanted = f"torchvision==0.{minor + 15}.*" if minor <= 13 else "torchvision>=0.29"
    return _install("--no-deps", wanted)


def _import_problem(error: str) -> tuple[str, str]:
    """What is behind an import error, and the command that mends it."""
    if _MISSING_OPERATOR not in error:
        return "", _install(*_reinstall(), "torch", "torchvision", "timm")
    torch, vision = environment.installed("torch") or "0.0", environment.installed("torchvision") or "0.0"
    if not is_pair(torch, vision):
        return f" (it was not made for torch {torch})", _pair_fix()
    reason = f" (one of torch {torch} and torchvision {vision} is built for the CPU only, the other for CUDA)"
    return reason, _install(*_reinstall(), "torch", "torchvision")


def _reinstall() -> list[str]:
    return ["--upgrade", "--force-reinstall"] if find_spec("pip") else ["--upgrade", "--reinstall"]


def _install(*arguments: str) -> str:
    """The command that installs into this very interpreter; environments made by uv have no pip."""
    python = shlex.quote(sys.executable)
    tool = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    return " ".join([tool, *(shlex.quote(a) for a in arguments)])


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]


def processor() -> Check:
    """Instruction sets that decide the speed of training on a CPU."""
    flags = environment.cpu_flags()
    interesting = {
        "AVX2": "avx2",
        "AVX-512": "avx512f",
        "AVX-512 bf16": "avx512_bf16",
        "AMX bf16": "amx_bf16",
        "NEON": "asimd",
        "Arm bf16": "bf16",
    }
    has = [label for label, flag in interesting.items() if flag in flags]
    found = environment.cpu_model() + (f" ({', '.join(has)})" if has else "")
    if "sse2" in flags and "avx2" not in flags:
        return Check("processor", "WARN", f"{found}: no AVX2", "expect slow training; use another machine if you can.")
    return Check("processor", "PASS", found)


def threads() -> Check:
    """Threads that torch is going to start, against the cores there are."""
    cores = environment.cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > cores:
        return Check("cores", "WARN", f"{cores}, but OMP_NUM_THREADS={asked}", f"export OMP_NUM_THREADS={cores}")
    limited = f"; OMP_NUM_THREADS={asked}" if asked else ""
    machine = os.cpu_count() or cores
    if machine > cores and not asked:  # a container's quota, which torch does not see
        return Check("cores", "WARN", f"{cores} of the machine's {machine}", f"export OMP_NUM_THREADS={cores}")
    return Check("cores", "PASS", f"{cores}{limited}")


def memory() -> Check:
    """Memory that this process may fill."""
    size = environment.memory_bytes()
    if size == 0:
        return Check("memory", "PASS", "not told by this system")
    if size < 4 * GIB:
        return Check("memory", "WARN", f"{size / GIB:.1f} GiB", "use small images and jobs = 1; 4 GiB is better.")
    return Check("memory", "PASS", f"{size / GIB:.1f} GiB")


def gpu(probed: dict[str, Any]) -> Check:
    """A GPU that torch can use; a warning for one that it cannot."""
    if probed.get("gpu"):
        return Check("gpu", "PASS", ", ".join(probed["gpu"]))
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        build = environment.installed("torch") or "none"
        return Check(
            "gpu",
            "WARN",
            f"an NVIDIA driver is here, but torch {build} cannot use it",
            "install a torch built for CUDA, or a newer driver (`nvidia-smi` names the CUDA it takes).",
        )
    return Check("gpu", "PASS", "none; training runs on the CPU")


def disk(runs: Path) -> Check:
    """The folder of runs, or the folder that it is going to be made in, can be written and has room."""
    folder = next(p for p in [runs.absolute(), *runs.absolute().parents] if p.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free / GIB
    except OSError as cause:
        reason = (cause.strerror or str(cause)).lower()
        return Check("disk", "FAIL", f"{runs} cannot be written: {reason}", "choose another folder: --runs DIR")
    found = f"{runs} can be written, {free:.1f} GiB free"
    if free < 0.5:
        return Check("disk", "FAIL", found, "free some space, or choose another disk: --runs DIR")
    if free < 5:
        return Check("disk", "WARN", found, "a study keeps two models a unit and the decoded images; 5 GiB is safer.")
    return Check("disk", "PASS", found)


def precision(probed: dict[str, Any]) -> Check:
    """bf16 against fp32, measured: a processor may offer bf16 and be slower with it."""
    seconds = probed.get("precision")
    if not seconds:
        return Check("precision", "WARN", "not measured: torch does not start or stopped", "mend torch first.")
    fp32, bf16 = seconds["fp32"], seconds["bf16"]
    measured = f"{bf16 * 1e3:.1f} and {fp32 * 1e3:.1f} ms a step, small net, {seconds['device']}"
    return Check("precision", "PASS", f"bf16 is {fp32 / bf16:.1f} × as fast as fp32 ({measured})")


def weights() -> Check:
    """Pretrained weights that are on this machine already."""
    try:
        from huggingface_hub import constants
    except ImportError as cause:
        return Check("weights", "FAIL", f"huggingface_hub does not start: {cause}", _install("huggingface_hub"))
    found = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/model.safetensors")
    names = sorted({p.parents[2].name.removeprefix("models--").replace("--", "/") for p in found if p.exists()})
    listed = f"{len(names)} in the hub's cache" + (f": {', '.join(names[:3])}" if names else "")
    listed += ", …" if len(names) > 3 else ""
    if constants.HF_HUB_OFFLINE and not names:
        fix = "unset HF_HUB_OFFLINE, or give a .safetensors file in model.weights, or model.weights = 'none'."
        return Check("weights", "WARN", f"{listed}, and HF_HUB_OFFLINE is set", fix)
    return Check("weights", "PASS", listed + ("; offline mode" if constants.HF_HUB_OFFLINE else ""))


def extras() -> Check:
    """Optional features: which extras are complete, and which packages a half-installed one lacks."""
    listed = (requires("morphfed") or []) if environment.installed("morphfed") else []
    needed: dict[str, list[str]] = {}
    for requirement in listed:
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement):
            needed.setdefault(extra[1], []).append(_name(requirement))
    missing = {e: [p for p in ps if environment.installed(p) is None] for e, ps in needed.items()}
    have = [e for e in needed if not missing[e]]
    without = [e for e in needed if missing[e]]
    found = f"installed: {', '.join(have) or 'none'}; not installed: {', '.join(without) or 'none'}"
    partly = {e: missing[e] for e in without if len(missing[e]) < len(needed[e])}
    if partly:
        details = "; ".join(f"{e} lacks {', '.join(ps)}" for e, ps in partly.items())
        return Check("extras", "WARN", f"{found}; {details}", _install(*(p for ps in partly.values() for p in ps)))
    return Check("extras", "PASS", found)


def plugins(probed: dict[str, Any]) -> Check:
    """Algorithms and sources that other packages bring and that cannot be used."""
    if "registered" not in probed:
        why = probed["errors"].get("plug-ins", "because torch, torchvision or timm does not start")
        return Check("plug-ins", "WARN", f"not looked at: {why}", "mend what failed above.")
    if refused := probed["refused"]:
        return Check("plug-ins", "WARN", "; ".join(refused), "update or uninstall that package.")
    return Check("plug-ins", "PASS", f"{probed['registered']} algorithms and sources")


def _print(checks: list[Check], worst: Verdict, seconds: float, after: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colour = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.status, style=colour[check.status]), check.name, Text(check.found))
    console.print(table)
    for check in checks:
        if check.fix:  # one unbroken line, so that a command can be copied
            console.print(Text(f"fix {check.name}: {check.fix}"), soft_wrap=True)
    failed, warned = (sum(c.status == s for c in checks) for s in ("FAIL", "WARN"))
    console.print(f"{len(checks)} checks, {failed} failed, {warned} warnings ({seconds:.0f} s)", soft_wrap=True)
    text = "next: mend what failed, then the same command again" if worst == "FAIL" else f"next: {after}"
    console.print(text, soft_wrap=True)


def _run_probe() -> dict[str, Any]:
    """What `_probe` found, in a process of its own: an import may end the process or never come back."""
    command = [sys.executable, "-P", "-m", "morphfed.cli._probe"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False
        )
        output, ended = done.stdout, f"the process ended with status {done.returncode}"
        if done.returncode < 0:
            ended = f"the process was ended by signal {-done.returncode}"
        last_words = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as cause:
        output = (cause.stdout or b"").decode(errors="replace")
        ended, last_words = f"no answer within {PROBE_SECONDS} s", []
    found: dict[str, Any] = {"errors": {}, "seconds": {}}
    for line in output.splitlines():
        try:
            told = loads(line)
        except JSONDecodeError:  # a library that prints while it is imported
            continue
        for key, value in told.items() if isinstance(told, dict) else ():
            found[key] = {**found[key], **value} if key in ("errors", "seconds") else value
    if "done" not in found:
        # What was begun last is what ended the process.
        found["errors"].setdefault(found.get("begun", "torch"), ": ".join([ended, *last_words]))
    return found
