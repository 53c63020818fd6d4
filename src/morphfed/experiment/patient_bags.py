"""From blood cells to bags: the cells of a patient become one bag of features, with the patient's label.

A patient's label is what all of its cells are labelled with (a diagnosis), or follows from what the film is made of: a
patient is positive whose share of one cell type reaches a threshold. Where patients are not known, they can be composed
from a site's cells, each cell in one patient only.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import ConfigError, DataError
from morphfed.core.files import write_text
from morphfed.core.progress import Reporter, silent, tracked
from morphfed.core.seeding import numpy_stream
from morphfed.data.bags.files import write_bag
from morphfed.data.cache import ImageStore, Picture
from morphfed.data.ontology import load_ontology
from morphfed.experiment.assemble import column
from morphfed.experiment.features import computing
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.features import cut_before_classifier, fingerprint
from morphfed.training.features import FeatureStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.data.manifest import Manifest

POSITIVE, NEGATIVE = "positive", "negative"
TABLE = "slides.csv"


@dataclass(frozen=True)
class Composition:
    """A label by what a film is made of.

    Attributes:
        cell: node of the ontology; finer types count too.
        share: of a patient's cells from which on it is positive.
    """

    cell: str
    share: float

    def __post_init__(self) -> None:
        load_ontology().ancestors(self.cell)  # refuses a name that is none
        if not 0 < self.share < 1:
            raise ConfigError(f"--share is {self.share:g}.", fix="give a share between 0 and 1, such as 0.2.")


@dataclass(frozen=True)
class Invented:
    """Patients composed from a site's cells.

    Attributes:
        patients: of each site; every other one is positive.
        cells: of each patient.
        seed: of the draw.
    """

    patients: int
    cells: int
    seed: int = 0


@dataclass(frozen=True)
class Encoder:
    """What makes features of a cell.

    Attributes:
        model: a timm model, and its weights as ``model.weights``.
        weights: see ``ModelConfig``.
        image_size: side in pixels that cells are resized to.
        cache: of pictures and features.
    """

    model: str
    weights: str
    image_size: int
    cache: Path


@dataclass(frozen=True)
class PatientBag:
    """One bag before its features.

    Attributes:
        site, patient, label: of the patient.
        rows: int64 ``(N,)``, rows of the manifest.
    """

    site: str
    patient: str
    label: str
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class WrittenBags:
    """What was written.

    Attributes:
        tables: site → its slide table.
        labels: site → patients by label.
    """

    tables: dict[str, Path]
    labels: dict[str, Counter[str]]


def patients_of(
    manifest: Manifest, composition: Composition | None, invented: Invented | None
) -> tuple[list[PatientBag], Counter[str]]:
    """Which cells make which patient, and how many cells were left out for what.

    Raises:
        DataError: no patient is known, a patient has several labels, or a site has too few cells; names them.
        ConfigError: patients are to be invented without a composition.
    """
    if invented is not None:
        if composition is None:
            raise ConfigError(
                "--compose invents patients, whose label is what they are made of.",
                fix="give --positive CELL and --share, for example --positive myeloblast --share 0.2.",
            )
        return _invent(manifest, composition, invented)
    frame = manifest.frame
    left_out: Counter[str] = Counter()
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (site, patient, digest) in enumerate(
        zip(frame["site"], column(frame, "patient"), column(frame, "sha256"), strict=True)
    ):
        if patient is None or digest is None:
            left_out["no patient id" if patient is None else "the file cannot be read"] += 1
        else:
            groups[str(site), patient].append(row)
    if not groups:
        raise DataError(
            "The manifest names no patient.", fix="add patient ids, or compose patients with --compose and --positive."
        )
    own, positive = column(frame, "source_label"), _positive(manifest, composition)
    bags = []
    for (site, patient), rows in groups.items():
        where = np.array(rows, dtype=np.int64)
        if composition is not None:
            label = POSITIVE if positive[where].mean() >= composition.share else NEGATIVE
        else:
            labels = {own[row] for row in rows}
            if len(labels) > 1:
                raise DataError(
                    f"Patient '{patient}' of {site} has cells of {len(labels)} labels ({', '.join(map(str, labels))}).",
                    fix="give --positive CELL and --share to label patients by what their film is made of.",
                )
            label = str(labels.pop())
        bags.append(PatientBag(site, patient, label, where))
    return bags, left_out


def _positive(manifest: Manifest, composition: Composition | None) -> NDArray[np.bool_]:
    """Which cells are of the composition's type."""
    nodes = column(manifest.frame, "label")
    if composition is None:
        return np.zeros(len(nodes), dtype=np.bool_)
    ontology = load_ontology()
    return np.array([n is not None and ontology.to_class(n, [composition.cell]) is not None for n in nodes])


def _invent(manifest: Manifest, composition: Composition, how: Invented) -> tuple[list[PatientBag], Counter[str]]:
    """Every other patient is positive: its share is drawn from s to (1 + s) / 2, else from 0 to s / 2."""
    frame, positive = manifest.frame, _positive(manifest, composition)
    known = frame["label"].notna().to_numpy() & frame["sha256"].notna().to_numpy()
    left_out: Counter[str] = Counter({"label not in the ontology, or file unreadable": int((~known).sum())})
    bags = []
    for site in manifest.sites:
        here = known & (frame["site"] == site).to_numpy()
        draw = numpy_stream(how.seed, "patients", site)
        pools = {kind: list(draw.permutation(np.flatnonzero(here & (positive == kind)))) for kind in (True, False)}
        for number in range(how.patients):
            s, sick = composition.share, number % 2 == 1
            share = draw.uniform(s, (1 + s) / 2) if sick else draw.uniform(0, s / 2)
            wanted = {True: int(np.ceil(share * how.cells)) if sick else int(share * how.cells)}
            wanted[False] = how.cells - wanted[True]
            for kind, n in wanted.items():
                if len(pools[kind]) < n:
                    what = composition.cell if kind else f"other than {composition.cell}"
                    raise DataError(
                        f"Site '{site}' has no cells {what} left for patient {number + 1} of {how.patients}: "
                        f"{n} are needed, {len(pools[kind])} are left.",
                        fix="compose fewer patients, or of fewer cells; a cell is in one patient only.",
                    )
            rows = [pools[kind].pop() for kind, n in wanted.items() for _ in range(n)]
            label = POSITIVE if sick else NEGATIVE
            bags.append(PatientBag(site, f"{site}-{number:03}", label, np.sort(np.array(rows, dtype=np.int64))))
        left_out["not drawn into a patient"] += sum(len(pool) for pool in pools.values())
    return bags, +left_out


def write_patient_bags(
    manifest: Manifest, bags: Sequence[PatientBag], encoder: Encoder, out: Path, *, report: Reporter = silent
) -> WrittenBags:
    """Compute the cells' features, once for each, and write ``OUT/SITE/PATIENT.h5`` with a slide table a site.

    Raises:
        ConfigError: no such encoder, or one whose features cannot be taken out.
        DataError: a file could be read when the manifest was made and cannot now.
        StorageError: a folder cannot be written.
    """
    features, places = _features(manifest, bags, encoder, report)
    tables: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for bag in tracked(bags, report, "bags", "writing bags"):
        name = _plain(bag.patient)
        at = np.array([places[int(row)] for row in bag.rows])
        cells = [str(manifest.frame["path"].iloc[int(row)]) for row in bag.rows]
        write_bag(out / bag.site / f"{name}.h5", features.gather(at), encoder=encoder.model, names=cells)
        tables[bag.site].append((bag.patient, name, bag.label))
    written = {}
    for site, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("case_id", "slide_id", "label"), *rows])
        written[site] = out / site / TABLE
        write_text(written[site], text.getvalue())
    labels = {site: Counter(label for _, _, label in rows) for site, rows in tables.items()}
    return WrittenBags(written, labels)


def _features(
    manifest: Manifest, bags: Sequence[PatientBag], encoder: Encoder, report: Reporter
) -> tuple[FeatureStore, dict[int, int]]:
    """The store of features, and where each of the manifest's rows is in it."""
    config = ModelConfig(name=encoder.model, weights=encoder.weights)
    backbone = build(config, classes=2, image_size=encoder.image_size, seed=0)
    cut = cut_before_classifier(backbone, image_size=encoder.image_size)
    if cut is None:
        raise ConfigError(
            f"--model {encoder.model}: its classifier is no linear layer of a feature vector.",
            fix="name another model.",
        )
    pictures = ImageStore(encoder.cache, size=encoder.image_size, pad="none")
    rows = np.unique(np.concatenate([bag.rows for bag in bags]))
    files, digests = manifest.files(), column(manifest.frame, "sha256")
    wanted = [Picture(files[int(row)], str(digests[int(row)]), None) for row in rows]
    failed = pictures.ensure(wanted, report=report).failed
    if failed:
        first = next(iter(failed.values()))
        raise DataError(
            f"{len(failed)} cells that were there before cannot be read now: {first}", fix="draft the manifest again."
        )
    at = pictures.rows_of(pictures.key(picture) for picture in wanted)
    store = FeatureStore(pictures, backbone=fingerprint(backbone), width=cut.width)
    store.ensure(at, (0,), computing(backbone, cut), report=report)
    places = store.places(at, (0,))[:, 0]
    return store, {int(row): int(place) for row, place in zip(rows, places, strict=True)}


def _plain(patient: str) -> str:
    """A patient's id as a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in patient)
