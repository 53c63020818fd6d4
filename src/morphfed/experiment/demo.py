"""The demo's study: four imaginary laboratories, one of which takes no part."""

from __future__ import annotations

import os
from pathlib import Path

from morphfed.core.files import write_text
from morphfed.core.progress import Reporter, silent

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")

# Class mixes differ as they do between hospitals; the third laboratory hardly sees a basophil.
COUNTS = {
    "alder": dict(zip(CLASSES, (45, 45, 45, 45, 45), strict=True)),
    "birch": dict(zip(CLASSES, (90, 40, 25, 15, 8), strict=True)),
    "cedar": dict(zip(CLASSES, (70, 35, 25, 30, 4), strict=True)),
    "dogwood": dict(zip(CLASSES, (40, 30, 25, 25, 20), strict=True)),
}

STUDY = """\
# The demo: synthetic films of four imaginary laboratories. Copy this file and name your own folders.
name = "demo"
title = "Synthetic blood films: three laboratories train, a fourth is held out"
seeds = [0]
classes = ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"]
held_out = ["dogwood"]

[sites]
alder = { path = "alder" }
birch = { path = "birch" }
cedar = { path = "cedar" }
dogwood = { path = "dogwood" }

[data]
root = "films"
image_size = 48
field_um = 22.0

[model]
name = "resnet10t"          # from scratch: the demo needs no download

[train]
lr = 2e-3
batch_size = 16
local_epochs = 2
precision = "auto"

[federation]
rounds = 5

[arms.local]
[arms.centralised]
[arms.fedavg]
[arms.fedprox]
mu = 0.01
"""


def write_demo(folder: Path, *, report: Reporter = silent) -> Path:
    """Draw the films and write the study file; films that are there already are kept.

    Returns:
        The study file.

    Raises:
        StorageError: the folder cannot be written.
    """
    from morphfed.data.synthetic import PRESETS, write_films

    films = folder / "films"
    missing = [name for name in COUNTS if not (films / name / "labels.csv").is_file()]
    if missing:
        write_films(
            films,
            [PRESETS[name] for name in missing],
            {name: COUNTS[name] for name in missing},
            seed=0,
            jobs=os.cpu_count() or 1,
            report=report,
        )
    study = folder / "study.toml"
    if not study.is_file():
        write_text(study, STUDY)
    return study
