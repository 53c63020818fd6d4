"""What a study needs of disk and network, from the networks as they are built here (with empty weights)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from morphfed.core.types import nbytes
from morphfed.deploy.agreed import Agreed
from morphfed.deploy.review import network_of
from morphfed.federation.transports.desk import KEEP

_PRIVATE = 3  # times the model's size that a site keeps of a round at most


@dataclass(frozen=True)
class Needs:
    """Of the largest arm, unless said otherwise.

    Attributes:
        upload, download: bytes that a site sends and gets in a round.
        site, coordinator: bytes on disk when all units are done, prepared images not counted.
    """

    upload: int
    download: int
    site: int
    coordinator: int

    def round_seconds(self, bits_per_second: float) -> float:
        """Time that the transfers of a round take one site, if it gets as fast as it sends."""
        return 8 * (self.upload + self.download) / bits_per_second


def needs_of(agreed: Agreed) -> Needs:
    """Build each arm's network once and add up.

    A site keeps a model a unit, and private state of the last rounds and the best one: at most weights and two moments
    of the optimiser, often nothing. The coordinator keeps two models a unit, two checkpoints of the one that trains,
    and the messages of a round.

    Raises:
        ModelError: a network cannot be built here.
    """
    upload = download = site = coordinator = largest = checkpoints = 0
    for name, arm in agreed.arms.items():
        own = tuple(agreed.sites[:1])  # of local models each site keeps its own
        units = [unit for unit in agreed.all_units if unit.arm == name and (unit.moves or unit.trained_on == own)]
        empty = replace(arm, model=arm.model.model_copy(update={"weights": "none"}))
        network = network_of(units[0], replace(agreed, arms={**agreed.arms, name: empty}), torch.device("cpu"))
        model = nbytes(network.backbone.module.state_dict())
        if not units[0].moves:  # its checkpoints too; nothing travels
            site += len(units) * model * (3 + _PRIVATE * KEEP)
            continue
        up = network.upload_bytes
        down = nbytes(network.coding.send({"": network.coordinator().download("")})[""])
        upload, download = max(upload, up), max(download, down)
        site += len(units) * model * (1 + _PRIVATE * (KEEP + 1))
        coordinator += len(units) * 2 * model
        checkpoints = max(checkpoints, 4 * down)
        largest = max(largest, up + down)
    messages = 2 * len(agreed.everyone) * largest  # in the server's database and in the spool
    return Needs(upload, download, site, coordinator + checkpoints + messages)
