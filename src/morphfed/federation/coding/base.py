"""A code writes one float tensor in fewer bytes; its keys in a study; the registry of codes.

A module of this package registers its code with ``CODECS.register(name)``; another package adds one through the
entry-point group ``morphfed.codecs``. A code knows neither sites nor rounds nor the transport: error feedback, and what
is coded against what, is :mod:`morphfed.federation.coding.wire`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from morphfed.core.config import Config
from morphfed.core.errors import did_you_mean
from morphfed.core.registry import Registry
from morphfed.core.types import Spec, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class UploadConfig(Config):
    """How the changes of the trained weights are written for the way to the coordinator."""

    code: str = Field(
        "fp32",
        description="fp32: as they are; bf16 or fp16: rounded; int8: one byte a number and a scale; topk: the largest; "
        "blocktopk: the largest of every 256, in two bytes each",
    )
    scale: Literal["channel", "tensor"] = Field(
        "channel", description="of int8: a scale for each output channel of a layer, or one a tensor"
    )
    rounding: Literal["nearest", "stochastic"] = Field(
        "nearest", description="of int8; stochastic: up or down at random, right on average; drawn from the seed"
    )
    share: float = Field(0.01, gt=0, le=1, description="of topk and blocktopk: share of the numbers that is sent")
    error_feedback: bool = Field(
        True, description="what a code leaves out stays at the site and is added to its next upload"
    )

    @field_validator("code")
    @classmethod
    def _known(cls, value: str) -> str:
        names = CODECS.names()
        if value not in names:
            raise ValueError(
                f"there is no code '{value}', choose one of {', '.join(names)}{did_you_mean(value, names)}"
            )
        return value

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        known = CODECS[self.code].keys
        for key in ("scale", "rounding", "share"):
            if key not in known and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' is no key of the code '{self.code}'; leave it out")
        return self


class Codec(ABC):
    """Writes a float tensor as named parts, and reads it back. Both ends build the same one from the study.

    Args:
        config: the keys of the upload; a code looks at those named in :attr:`keys`.
    """

    keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of :class:`UploadConfig` that this code has."""

    def __init__(self, config: UploadConfig) -> None:
        self._config = config

    @abstractmethod
    def parts(self, spec: Spec) -> dict[str, Spec]:
        """What a tensor of this spec becomes: shapes and dtypes follow from it alone, so they can be declared."""

    @abstractmethod
    def encode(self, tensor: Tensor, seed: int) -> Tensors:
        """Write.

        Args:
            tensor: float32, any shape but an empty one, all values finite.
            seed: of this tensor in this upload; a code that draws nothing ignores it.

        Returns:
            What :meth:`parts` announces, on the tensor's device.
        """

    @abstractmethod
    def decode(self, parts: Tensors, spec: Spec) -> Tensor:
        """Read, whoever wrote it.

        Args:
            parts: of exactly the shapes and dtypes of :meth:`parts`; their values may be anything.
            spec: of the result.

        Raises:
            ValueError: values that :meth:`encode` never writes; says which.
        """


CODECS: Registry[type[Codec]] = Registry("code", package="morphfed.federation.coding", group="morphfed.codecs")
