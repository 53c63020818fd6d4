"""What a run ran on, for `results.json`: enough to repeat it; no person, host or folder is named."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from morphfed import __version__

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")


def describe() -> dict[str, Any]:
    """The block ``environment`` of `results.json`.

    ``threads`` are torch's in this process, ``cores`` and ``memory_gib`` what the process may use.
    Versions of libraries that are not installed are None, and so is ``gpu`` without one that torch can use.
    """
    return {
        "morphfed": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in LIBRARIES},
        "platform": platform_name(),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        **_torch_state(),
    }


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def platform_name() -> str:
    """Operating system, architecture and C library, such as ``Linux x86_64, glibc 2.39``."""
    libc = " ".join(platform.libc_ver()).strip()
    return f"{platform.system()} {platform.machine()}" + (f", {libc}" if libc else "")


def cpu_model() -> str:
    """Name of the processor as its maker gives it; the architecture where the system does not say."""
    if sys.platform == "darwin":
        question = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        asked = subprocess.run(question, capture_output=True, text=True, check=False)
        return asked.stdout.strip() or platform.machine()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the first core; empty where the system does not list them."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def cores() -> int:
    """Cores that this process may use: the affinity mask and, in a container, the control group's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (_cgroup("cpu.max") or "max").partition(" ")
    if quota.isdigit() and period.isdigit():
        available = min(available, max(1, round(int(quota) / int(period))))
    return available


def memory_bytes() -> int:
    """Memory that this process may fill: the machine's, or less in a container; 0 where it cannot be told."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
    limit = _cgroup("memory.max") or "max"
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str | None:
    """A limit of this process's own control group (version 2), as seen from inside a container."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _torch_state() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError):  # not installed, or a library that it links to is missing
        return {"threads": None, "gpu": None, "cuda": None}
    if not torch.cuda.is_available():
        return {"threads": torch.get_num_threads(), "gpu": None, "cuda": None}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpu = names[0] if len(names) == 1 else " + ".join(f"{names.count(n)} × {n}" for n in dict.fromkeys(names))
    return {"threads": torch.get_num_threads(), "gpu": gpu, "cuda": torch.version.cuda}
