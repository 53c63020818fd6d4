"""What the coordinator accepts. A bad upload is rejected by its site's name, never averaged in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from morphfed.core.errors import UploadRejectedError
from morphfed.core.types import Spec, Tensors, Upload
from morphfed.federation.coding.wire import Coding

_FIX = "the round goes on without this site if the quorum holds; look at the site's data and training log."


def check_upload(upload: Upload, *, site: str, round_number: int, specs: Mapping[str, Spec]) -> None:
    """Accept or reject one upload.

    Args:
        upload: what arrived.
        site: who was asked.
        round_number: for which round.
        specs: name → shape and dtype that this round expects.

    Raises:
        UploadRejectedError: names the site and the first thing that is wrong.
    """
    if upload.site != site or upload.round != round_number:
        raise _rejected(site, f"it answers round {upload.round} of '{upload.site}', expected round {round_number}")
    missing = [n for n in specs if n not in upload.tensors]
    unknown = [n for n in upload.tensors if n not in specs]
    if missing or unknown:
        raise _rejected(site, f"tensors missing: {_some(missing)}; not asked for: {_some(unknown)}")
    for name, spec in specs.items():
        found = Spec.of(upload.tensors[name])
        if found != spec:
            raise _rejected(site, f"'{name}' has {found.dtype} {found.shape}, expected {spec.dtype} {spec.shape}")
    if not (math.isfinite(upload.weight) and upload.weight > 0):
        raise _rejected(site, f"its weight is {upload.weight}, expected a positive number of images")
    if not all(math.isfinite(value) for value in upload.metrics.values()):
        wrong = next(name for name, value in upload.metrics.items() if not math.isfinite(value))
        raise _rejected(site, f"its number '{wrong}' is {upload.metrics[wrong]}")
    bad = first_not_finite(upload.tensors)
    if bad is not None:
        raise _rejected(site, f"'{bad}' holds NaN or infinity")


def opened(upload: Upload, coding: Coding, download: Tensors) -> Upload:
    """The upload as the algorithm takes it in: ordinary tensors, all finite.

    Args:
        upload: one that :func:`check_upload` accepted with ``coding.specs``.
        coding: how it was written.
        download: what the coordinator handed to this site, in full precision.

    Raises:
        UploadRejectedError: names the site and the tensor.
    """
    if coding.plain:
        return upload
    try:
        tensors = coding.decode(upload.tensors, download)
    except ValueError as cause:
        raise _rejected(upload.site, str(cause)) from cause
    bad = first_not_finite(tensors)
    if bad is not None:
        raise _rejected(upload.site, f"'{bad}' with its change added holds NaN or infinity")
    return replace(upload, tensors=tensors)


def first_not_finite(tensors: Tensors) -> str | None:
    """Name of the first tensor that holds NaN or infinity, or None; one pass, no copy.

    NaN and infinity always show in a sum, which is ten times faster than a norm. A sum of finite values may overflow
    too, so a tensor is looked at value by value before it is blamed.
    """
    if not tensors:
        return None
    # Sums are gathered where the tensors are, and read together: each read would wait for a GPU.
    device = next(iter(tensors.values())).device
    sums = torch.stack([t.sum().to(device, torch.float64) for t in tensors.values()])
    suspects = [name for name, ok in zip(tensors, sums.isfinite().tolist(), strict=True) if not ok]
    return next((name for name in suspects if not bool(tensors[name].isfinite().all())), None)


def _rejected(site: str, why: str) -> UploadRejectedError:
    return UploadRejectedError(f"Site '{site}': upload rejected: {why}.", fix=_FIX)


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "none"
