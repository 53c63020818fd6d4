"""Exports of CellaVision analysers: ``SNE_100123.jpg``, the code before the underscore is the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, patient_of, split_of
from morphfed.data.sources.folders import class_folder, known_labels


@SOURCES.register("cellavision")
class CellaVision(Source):
    """Any folder of prefixed files, flat or nested. The scale is not known: magnifications differ."""

    name = "cellavision"
    title = "CellaVision export, the class is the file name's prefix"
    layout = "its file names begin with CellaVision's codes (SNE_, LY_, …)"

    def detect(self, folder: Folder) -> float:
        """0.8 × the share of known prefixes; 0.7, a draw with ``folders``, where folders say otherwise."""
        if not folder.images:
            return 0.0
        share = prefixed(folder)
        return 0.7 * share if _contradicted(folder) else 0.8 * share

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image with a prefix, known or not."""
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for image in folder.images:
            label = prefix(image)
            if label is None:
                yield Skipped(image, "no prefix in the file name")
                continue
            parts = folder.parts(image)
            split = next((s for part in parts if (s := split_of(part))), None)
            yield Record(image, label, patient=patient_of(parts), split=split)


def prefix(image: Path) -> str | None:
    """The whole token before the first underscore: ``MMY_1.jpg`` is MMY, never MY."""
    token, underscore, _ = image.stem.partition("_")
    return token if underscore and token else None


def prefixed(folder: Folder) -> float:
    """Share of images whose prefix is one of CellaVision's codes, written in capitals as they are."""
    codes = load_ontology().tables["cellavision"].labels
    return sum(prefix(image) in codes for image in folder.images) / max(1, len(folder.images))


def _contradicted(folder: Folder) -> bool:
    """Whether class folders say something else than the prefixes do, for 1 % of the images or more."""
    ontology, known = load_ontology(), known_labels(folder)
    table = ontology.table_for(known)
    against = 0
    for image in folder.images:
        said, code = class_folder(folder.parts(image), known), prefix(image)
        outer = ontology.map(said, table) if said in known and said else None
        inner = ontology.map(code, "cellavision") if code else None
        # The coarser of the two may be either: folder "neutrophil" with SNE_, folder "band" with NEUTROPHIL_.
        if outer and inner and not {outer, *ontology.ancestors(outer)} & {inner}:
            against += outer not in ontology.ancestors(inner)
    return against * 100 >= max(1, len(folder.images))
