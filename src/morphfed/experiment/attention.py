"""Which instances of a bag a network went by: a few bags of a site, with their weightiest instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from morphfed.core.files import read_json, write_json
from morphfed.core.seeding import numpy_stream
from morphfed.data.bags.files import slide_id
from morphfed.data.bags.store import coords_at, geometry_at, names_at
from morphfed.reporting.attention import data_uri, heat_map

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from morphfed.data.bags.store import BagStore
    from morphfed.models.mil import MilHead
    from morphfed.training.bags import BagSet

ATTENTION = "attention.json"
EXAMPLES = 4
"""Bags of a site that are looked at."""

TOP = 8
"""Instances of a bag that are named."""


Told = Callable[[int, "Tensor"], tuple[str, str]]
"""A bag's number in its set and the head's logits for it → its truth and what was predicted, in words."""


@torch.no_grad()
def examine(model: nn.Module, data: BagSet, device: torch.device, told: Told) -> list[dict[str, Any]]:
    """The instances that counted most in a few bags; nothing of a head without attention.

    Args:
        model: a head; put into evaluation mode.
        data: bags of one site.
        device: where the head is.
        told: says truth and prediction.

    Returns:
        For each bag ``id``, ``truth``, ``predicted``, ``n`` instances, ``effective`` (``1 / Σ a²``, how many instances
        the weights are spread over) and ``top``: ``index``, ``weight`` and, where they are known, ``at``, its
        position, and ``name``; and ``map``, a picture of the attention over the slide.
    """
    head, store = cast("MilHead", model), cast("BagStore", data.store)
    head.eval()
    found = []
    for i in _chosen(data):
        row = int(data.rows[i])
        bag = torch.from_numpy(np.array(store.read(row))).to(device)
        output = head(bag)
        if output.attention is None:
            return []
        weights = output.attention.float().cpu().numpy().astype(np.float64)
        truth, predicted = told(i, output.logits.float().cpu())
        coords, names = coords_at(Path(store.places[row])), names_at(Path(store.places[row]))
        found.append(
            {
                "id": str(data.ids[i]),
                "truth": truth,
                "predicted": predicted,
                "n": len(weights),
                "effective": float(1.0 / np.maximum((weights**2).sum(), 1e-12)),
                "top": [
                    {"index": int(k), "weight": float(weights[k]), **_at(coords, names, int(k))}
                    for k in np.argsort(-weights, kind="stable")[:TOP]
                ],
                **_map(Path(store.places[row]), coords, weights),
            }
        )
    return found


def _map(place: Path, coords: NDArray[np.int64] | None, weights: NDArray[np.float64]) -> dict[str, str]:
    """``map``: attention over the slide's thumbnail as a data URI, where positions and the tiles' size are known."""
    about = geometry_at(place)
    side, size = about.get("patch_size_level0"), (about.get("level0_width"), about.get("level0_height"))
    if coords is None or side is None or None in size:
        return {}
    whole = (int(size[0]), int(size[1]))  # type: ignore[arg-type]  # none of them is None
    drawn = heat_map(coords, weights, side=float(side), size=whole, picture=thumbnail_of(place))
    return {"map": data_uri(drawn)}


def thumbnail_of(bag: Path) -> NDArray[np.uint8] | None:
    """The slide's thumbnail: ``SLIDE.png`` or ``.jpg`` in ``thumbnails/`` beside the bag's folder, or beside the bag.

    Tiling keeps such a picture (``masks/SLIDE.png``); a folder of that name serves too. None: there is none.
    """
    from PIL import Image

    name = slide_id(bag)
    folders = [base / kind for base in (bag.parent, bag.parent.parent) for kind in ("thumbnails", "masks")]
    for path in (folder / f"{name}{suffix}" for folder in [*folders, bag.parent] for suffix in (".png", ".jpg")):
        if path.is_file():
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
    return None


def _chosen(data: BagSet) -> list[int]:
    """Bags of every class in turn, drawn by a seed of their own."""
    kinds = [int(c) for c in np.unique(data.labels)]  # of survival also those without an event
    drawn = [numpy_stream(0, "attention", str(c)).permutation(np.flatnonzero(data.labels == c)) for c in kinds]
    longest = max((len(rows) for rows in drawn), default=0)
    order = [int(rows[k]) for k in range(longest) for rows in drawn if k < len(rows)]
    return order[:EXAMPLES]


def _at(coords: NDArray[np.int64] | None, names: Sequence[str] | None, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {} if coords is None else {"at": [int(v) for v in coords[row]]}
    return found if names is None else {**found, "name": Path(names[row]).name}


def write_examined(path: Path, sites: Mapping[str, list[dict[str, Any]]]) -> None:
    """Keep what :func:`examine` found at each site."""
    write_json(path, dict(sites))


def read_examined(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What was kept; {} without the file."""
    return cast("dict[str, list[dict[str, Any]]]", read_json(path)) if path.is_file() else {}
