"""What a study's task decides: targets, network outputs, what a unit predicts, how it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morphfed.experiment.tasks.base import StudyTask

if TYPE_CHECKING:
    from morphfed.experiment.study import Study

__all__ = ["StudyTask", "study_task"]


def study_task(study: Study) -> StudyTask:
    """The task of a study."""
    if study.task == "segmentation":
        from morphfed.experiment.tasks.segmentation import SegmentationStudy

        return SegmentationStudy()
    if study.task == "mil":
        from morphfed.experiment.tasks.mil import MilStudy

        return MilStudy()
    from morphfed.experiment.tasks.classification import ClassificationStudy

    return ClassificationStudy()
