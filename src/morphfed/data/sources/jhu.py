"""JHU APL/AML, Johns Hopkins (Sidhom 2021, DeepAPL): 106 patients, 25,724 JPEG, of which 15,632 were signed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from morphfed.core.errors import ConfigError
from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, patient_of
from morphfed.data.sources.cellavision import prefix

SIGNED, UNSIGNED = "signed slides", "unsigned slides"


@SOURCES.register("jhu")
class JHU(Source):
    """``Patient_07/Signed slides/Smudge cells/SMU_1.jpg``, with a run's folder in between for some patients.

    A signed picture's label is its folder, which a person confirmed; the prefix is what the analyser had said. Unsigned
    pictures carry the prefix only and are left out unless asked for. A run becomes the slide. ``master.csv`` holds
    diagnosis, cohort, age and gender of the patients and is not read.
    """

    name = "jhu"
    title = "JHU APL/AML, Johns Hopkins (Sidhom 2021, DeepAPL)"
    layout = "its images lie in Patient_NN/Signed slides/TYPE or Patient_NN/Unsigned slides"
    options: ClassVar[Mapping[str, str]] = {
        "unsigned": "yes: also take the unsigned pictures, with the analyser's code as their label"
    }

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images below a patient's folder of signed or unsigned slides."""
        fitting = sum(bool(patient_of(p) and _kind(p)) for p in map(folder.parts, folder.images))
        return 0.95 * fitting / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every signed image, and for every unsigned one if asked for."""
        unsigned = options.get("unsigned", "no").casefold()
        if unsigned not in {"yes", "no", "true", "false"}:
            raise ConfigError(f"jhu: unsigned = '{unsigned}' is neither yes nor no.", fix="write yes or no.")
        take = unsigned in {"yes", "true"}
        known = {label.casefold() for label in load_ontology().tables["jhu"].labels}
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for image in folder.images:
            parts = folder.parts(image)
            kind, patient = _kind(parts), patient_of(parts)
            label = parts[-1] if kind == SIGNED and parts[-1].casefold() != SIGNED else None
            if kind == UNSIGNED:
                label = next((p for p in reversed(parts) if p.casefold() in known), None) or prefix(image)
            if patient is None or kind is None:
                yield Skipped(image, "not in a patient's folder of signed or unsigned slides")
            elif kind == UNSIGNED and not take:
                yield Skipped(image, "not signed by a person (to take it: unsigned = yes)")
            elif label is None:
                yield Skipped(image, "in no class folder")
            else:
                yield Record(image, label, patient=patient, slide=_run(parts, patient))


def _kind(parts: tuple[str, ...]) -> str | None:
    return next((word for part in parts if (word := part.casefold()) in (SIGNED, UNSIGNED)), None)


def _run(parts: tuple[str, ...], patient: str) -> str | None:
    """``Patient_07/run``, from the folders between the patient's and that of the slides, if there are any."""
    kinds = [i for i, part in enumerate(parts) if part.casefold() in (SIGNED, UNSIGNED)]
    between = parts[parts.index(patient) + 1 : kinds[0]]
    return "/".join((patient, *between)) if between else None
