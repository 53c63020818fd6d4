"""What a study's task decides: targets, network outputs, what a unit predicts, how it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morphfed.experiment.tasks.base import StudyTask, TellingTask

if TYPE_CHECKING:
    from morphfed.experiment.study import Study

__all__ = ["OVER_NETWORK", "StudyTask", "TellingTask", "study_task", "telling_task"]

OVER_NETWORK = ("classification", "segmentation", "mil")
"""Tasks of which a federation over a network may be."""


def study_task(study: Study) -> StudyTask:
    """The task of a study."""
    if study.task == "segmentation":
        from morphfed.experiment.tasks.segmentation import SegmentationStudy

        return SegmentationStudy()
    if study.task == "mil":
        from morphfed.experiment.tasks.mil import MilStudy

        return MilStudy()
    if study.task == "survival":
        from morphfed.experiment.tasks.survival import SurvivalStudy

        return SurvivalStudy()
    from morphfed.experiment.tasks.classification import ClassificationStudy

    return ClassificationStudy()


def telling_task(study: Study) -> TellingTask:
    """The task of a study whose sites tell scores.

    Raises:
        TypeError: no site can; ``morphfed.deploy.agreed`` refuses such a study before anything is asked.
    """
    task = study_task(study)
    if study.task not in OVER_NETWORK or not isinstance(task, TellingTask):
        raise TypeError(f"task = '{study.task}' tells no scores")
    return task
