"""How a site trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from morphfed.core.config import Config
from morphfed.data.augment import AugmentConfig
from morphfed.tasks.classification import LossConfig
from morphfed.tasks.segmentation import MaskLossConfig


class TrainConfig(Config):
    """One site's training, the same for every arm unless an arm overrides it."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw or sgd (Nesterov where momentum > 0)")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled in adamw, L2 in sgd; not on biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="over the whole run, not per round")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run in which the rate rises linearly")
    final_lr: float = Field(0.01, ge=0, le=1, description="share of lr at the end of the cosine")
    batch_size: int = Field(16, ge=1, description="images a step")
    local_epochs: int = Field(1, ge=1, description="passes over a site's training part in each round")
    clip: float = Field(5.0, ge=0, description="largest gradient norm; 0: no clipping")
    local_steps: int | None = Field(
        None,
        ge=1,
        description="optimiser steps of a site in each round, in place of local_epochs passes: small sites go over "
        "their images as often as that takes; pooled images get as many for each site",
    )
    optimizer_state: Literal["auto", "keep", "reset"] = Field(
        "auto",
        description="between rounds; auto: kept where one site trains alone, reset where models are averaged",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is measured faster")
    channels_last: bool = Field(True, description="memory layout of convolutions; faster on CPUs and GPUs")
    loss: LossConfig = Field(default_factory=LossConfig, description="what is minimised in classification")
    mask_loss: MaskLossConfig = Field(default_factory=MaskLossConfig, description="what is minimised in segmentation")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="perturbation of training images")
    max_instances: int | None = Field(
        None,
        ge=1,
        description="instances of a bag that a training step draws anew; empty: all of them; with task = 'mil'",
    )
    feature_cache: bool = Field(
        True,
        description="with model.tune = 'head': compute features once for each image, mirrored and turned; "
        "no other augmentation",
    )

    def steps(self, images: int, *, passes: int, sites: int = 1) -> int:
        """Optimiser steps of one training.

        Args:
            images: n of the training part, ≥ 1.
            passes: over the part; with ``local_steps`` those are counted in ``local_epochs``.
            sites: K whose images are pooled.
        """
        if self.local_steps is None:
            return passes * -(-images // self.batch_size)
        return max(1, self.local_steps * sites * passes // self.local_epochs)
