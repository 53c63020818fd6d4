"""A folder per class, at any depth: ``neutrophil/x.png``, ``train/neutrophil/x.png``, ``c/c/x.TIF``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, patient_of, split_of

LABELS_OPTION = "mapping table of the ontology for these labels, where the guess is wrong (lmu, mll23, ku …)"


@SOURCES.register("folders")
class Folders(Source):
    """The innermost folder whose name the ontology knows is the label, else the innermost folder."""

    name = "folders"
    title = "a folder per class"
    layout = "its images lie in folders named after cell types"
    options: ClassVar[Mapping[str, str]] = {"labels": LABELS_OPTION}

    def detect(self, folder: Folder) -> float:
        """0.7 where every folder is a known cell type, down to 0.3 where none is."""
        labels = [label for image in folder.images if (label := class_folder(folder.parts(image), ()))]
        if not labels:
            return 0.0
        known = known_labels(folder)
        mapped = sum(class_folder(folder.parts(i), known) in known for i in folder.images) / len(folder.images)
        if mapped == 0 and len(set(labels)) < 2:
            return 0.0  # one folder with a name that says nothing: "images", "Original_Images"
        return 0.3 + 0.4 * mapped

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image below a class folder."""
        known = known_labels(folder, options.get("labels"))
        for table in folder.tables:
            yield Skipped(table, "table, not an image (to use it: source table)")
        for image in folder.images:
            parts = folder.parts(image)
            label = class_folder(parts, known)
            if label is None:
                yield Skipped(image, "in no class folder")
                continue
            split = next((s for part in parts if (s := split_of(part)) and part != label), None)
            yield Record(image, label, patient=patient_of(parts), split=split)


def class_folder(parts: tuple[str, ...], known: frozenset[str] | tuple[()]) -> str | None:
    """The folder that names the class: the innermost known one, else the innermost that could."""
    candidates = [part for part in reversed(parts) if split_of(part) is None and not patient_of((part,))]
    return next((part for part in candidates if part in known), candidates[0] if candidates else None)


def known_labels(folder: Folder, table: str | None = None) -> frozenset[str]:
    """Names of folders that the ontology maps, in the table asked for or the one that fits them best."""
    ontology = load_ontology()
    names = {part for image in folder.images for part in folder.parts(image)}
    chosen = table or ontology.table_for(names)
    return frozenset(name for name in names if ontology.map(name, chosen))
