"""What `morphfed doctor` runs in a process of its own: imports that may crash or hang, and measurements.

``python -m morphfed.cli._probe`` prints one JSON object a line, each as soon as it is known.
"""

from __future__ import annotations

import time
from importlib import import_module
from json import dumps
from typing import Any

LIBRARIES = ("torch", "torchvision", "timm")


def main() -> None:
    """Import the heavy libraries and, where they start, look at GPU, speed and plug-ins."""
    started = {name for name in LIBRARIES if _starts(name)}
    if "torch" in started:
        _say(begun="torch")
        _say(gpu=_gpus())
        _say(precision=_measure_precision())
    if len(started) == len(LIBRARIES):
        _say(begun="plug-ins")
        _say(**_registries())
    _say(done=True)


def _say(**told: Any) -> None:
    print(dumps(told), flush=True)


def _starts(name: str) -> bool:
    _say(begun=name)
    before = time.monotonic()
    try:
        import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as cause:
        _say(errors={name: f"{type(cause).__name__}: {cause}"})
        return False
    _say(seconds={name: round(time.monotonic() - before, 2)})
    return True


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}" for p in every]


def _measure_precision() -> dict[str, Any]:
    """Seconds of one training step of a small convolutional net, 32 images of 64 px."""
    import torch
    from torch import nn

    from morphfed.training.precision import step_seconds

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    seconds = {
        p: step_seconds(model, precision=p, image_size=64, batch_size=32, device=device, repeats=10)
        for p in ("fp32", "bf16")
    }
    return {**seconds, "device": device.type}


def _registries() -> dict[str, Any]:
    from morphfed.algorithms.base import ALGORITHMS
    from morphfed.data.sources.base import SOURCES

    refused = [*ALGORITHMS.refused().values(), *SOURCES.refused().values()]
    return {"registered": len(ALGORITHMS.names()) + len(SOURCES.names()), "refused": refused}


if __name__ == "__main__":
    main()
