"""A network that makes the weights of another network from a short vector, such as a site's embedding.

Ha, Dai, Le: HyperNetworks. ICLR 2017. Trunk and full heads are those of Shamsian, Navon, Fetaya, Chechik: Personalized
federated learning using hypernetworks. ICML 2021: ``Linear(E → H)``, then L times ReLU and ``Linear(H → H)``, and one
linear layer for each target tensor. Chunks: von Oswald, Henning, Grewe, Sacramento: Continual learning with
hypernetworks. ICLR 2020, section 2. Low rank: each generated matrix is a product of two generated factors, as in Hu et
al.: LoRA. ICLR 2022.

Every head gives ``θ = base + change(z)`` with z the trunk's output. Ours, and in none of these papers:

* ``base`` starts as the given weights and ``change`` as exactly 0, so that the first generated weights *are* the given
  ones, to the bit, whatever the embedding. In a full head ``base`` is nothing but its bias.
* The trunk is drawn so that z keeps its size through the layers (He et al. 2015), and z is divided by √H. Chunks,
  which share one layer, are divided by √J besides. One gradient step on half the squared distance to a target then
  moves θ by one to about two times the rate, whichever head and whatever the sizes, so that a rate means the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from morphfed.core.types import Tensors

HeadKind = Literal["full", "chunked", "low-rank"]
Features = Callable[[Tensor], Tensor]
"""The trunk."""

CHUNK_EMBEDDING = 8
"""Numbers by which a chunk is told from the others."""


class Trunk(nn.Module):
    """Embedding ``(…, E)`` → features ``(…, H)`` of squared length about 1."""

    def __init__(self, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        widths = [embedding, *[hidden] * (layers + 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b, device="meta").to_empty(device="cpu") for a, b in pairwise(widths))

    def draw(self, generator: torch.Generator) -> None:
        """Fresh weights: normal, variance 1 / E before the first layer and 2 / H after each ReLU; biases as torch's."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            wide = layer.in_features
            _normal(layer.weight, math.sqrt((2 if i else 1) / wide), generator)
            _uniform(layer.bias, 1 / math.sqrt(wide), generator)

    def forward(self, embedding: Tensor) -> Tensor:
        """The last layer has no ReLU after it."""
        z = embedding
        for i, layer in enumerate(self.layers):
            z = layer(torch.relu(z) if i else z)
        return z / math.sqrt(z.shape[-1])


class Head(nn.Module, ABC):
    """Makes the change of every target tensor.

    Args:
        shapes: of the targets.
        hidden: H.
    """

    extra = 0
    """Numbers that the trunk gets beside the embedding."""

    def __init__(self, shapes: Sequence[torch.Size], hidden: int) -> None:
        super().__init__()
        self.shapes, self.hidden = list(shapes), hidden

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Fresh weights with which :meth:`forward` gives exactly 0."""

    @abstractmethod
    def forward(self, trunk: Features, embedding: Tensor) -> list[Tensor]:
        """Changes in the shapes of the targets, from an embedding ``(E,)``."""


class FullHead(Head):
    """``W_t z`` for each target t: H parameters for each number of the target, as published."""

    def __init__(self, shapes: Sequence[torch.Size], hidden: int) -> None:
        super().__init__(shapes, hidden)
        self.weights = nn.ParameterList(torch.empty(shape.numel(), hidden) for shape in shapes)

    def draw(self, generator: torch.Generator) -> None:
        """All 0."""
        for weight in self.weights:
            nn.init.zeros_(weight)

    def forward(self, trunk: Features, embedding: Tensor) -> list[Tensor]:
        """One matrix–vector product a target."""
        z = trunk(embedding)
        return [(weight @ z).view(shape) for weight, shape in zip(self.weights, self.shapes, strict=True)]


class LowRankHead(Head):
    """``A_t(z) B_t(z)``, A ``(O, r)`` and B ``(r, I)``, for each target t read as a matrix ``(O, I)``.

    ``A_t(z)`` is linear in z and starts at 0; ``B_t(z)`` is affine and starts at random rows of length about 1. A
    target for which two factors would take more parameters (a vector, a narrow matrix) has a full head.

    Args:
        shapes, hidden: see :class:`Head`.
        rank: r ≥ 1.
    """

    def __init__(self, shapes: Sequence[torch.Size], hidden: int, rank: int) -> None:
        super().__init__(shapes, hidden)
        self.rank = rank
        self._factored = [rank * (sum(_sides(s)) + _sides(s)[1] / hidden) < s.numel() for s in shapes]
        plain = [s for s, factored in zip(shapes, self._factored, strict=True) if not factored]
        sides = [_sides(s) for s, factored in zip(shapes, self._factored, strict=True) if factored]
        self.full = FullHead(plain, hidden)
        self.left = nn.ParameterList(torch.empty(rows * rank, hidden) for rows, _ in sides)
        self.right = nn.ParameterList(torch.empty(rank * columns, hidden) for _, columns in sides)
        self.offset = nn.ParameterList(torch.empty(rank * columns) for _, columns in sides)

    def draw(self, generator: torch.Generator) -> None:
        """A at 0; the two parts of B give its rows length 1 together, z having length 1."""
        self.full.draw(generator)
        for left, right, offset in zip(self.left, self.right, self.offset, strict=True):
            nn.init.zeros_(left)
            size = math.sqrt(self.rank / (2 * offset.numel()))
            _normal(right, size, generator)
            _normal(offset, size, generator)

    def forward(self, trunk: Features, embedding: Tensor) -> list[Tensor]:
        """Four matrix–vector products and one small matrix product a target."""
        z = trunk(embedding)
        full = iter(self.full(lambda _: z, embedding))
        factors = iter(zip(self.left, self.right, self.offset, strict=True))
        found = []
        for shape, factored in zip(self.shapes, self._factored, strict=True):
            if not factored:
                found.append(next(full))
                continue
            left, right, offset = next(factors)
            a, b = (left @ z).view(-1, self.rank), (right @ z + offset).view(self.rank, -1)
            found.append((a @ b).view(shape))
        return found


class ChunkedHead(Head):
    """All targets end to end, cut into J chunks of one length that share one layer; each has an embedding of its own.

    Args:
        shapes, hidden: see :class:`Head`.
        chunk: numbers of a chunk.
    """

    extra = CHUNK_EMBEDDING

    def __init__(self, shapes: Sequence[torch.Size], hidden: int, chunk: int) -> None:
        super().__init__(shapes, hidden)
        self.count = max(1, math.ceil(sum(s.numel() for s in shapes) / chunk))
        self.embeddings = nn.Parameter(torch.empty(self.count, CHUNK_EMBEDDING))
        self.weight = nn.Parameter(torch.empty(chunk, hidden))

    def draw(self, generator: torch.Generator) -> None:
        """The shared layer at 0."""
        _normal(self.embeddings, 1.0, generator)
        nn.init.zeros_(self.weight)

    def forward(self, trunk: Features, embedding: Tensor) -> list[Tensor]:
        """One pass of J rows through trunk and layer."""
        rows = torch.cat([embedding.expand(self.count, -1), self.embeddings], dim=1)
        flat = (trunk(rows) @ self.weight.T / math.sqrt(self.count)).view(-1)
        sizes = [shape.numel() for shape in self.shapes]
        pieces = torch.split(flat[: sum(sizes)], sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


class HyperNetwork(nn.Module):
    """``θ = h(v; φ)``: named weights from an embedding. It is empty until :meth:`draw`.

    Args:
        shapes: of the target tensors, by name.
        embedding: E ≥ 1.
        hidden: H ≥ 1.
        layers: L ≥ 0, further layers of the trunk.
        head: how the trunk's features become weights.
        rank: of ``low-rank``.
        chunk: numbers of a chunk, of ``chunked``.
    """

    def __init__(
        self,
        shapes: dict[str, torch.Size],
        *,
        embedding: int,
        hidden: int = 100,
        layers: int = 3,
        head: HeadKind = "full",
        rank: int = 4,
        chunk: int = 4096,
    ) -> None:
        super().__init__()
        self.names, self.embedding = list(shapes), embedding
        self.base = nn.ParameterList(torch.empty(shape) for shape in shapes.values())
        sizes = list(shapes.values())
        self.head: Head
        if head == "full":
            self.head = FullHead(sizes, hidden)
        elif head == "low-rank":
            self.head = LowRankHead(sizes, hidden, rank)
        else:
            self.head = ChunkedHead(sizes, hidden, chunk)
        self.trunk = Trunk(embedding + self.head.extra, hidden, layers)

    @torch.no_grad()
    def draw(self, initial: Tensors, generator: torch.Generator) -> HyperNetwork:
        """Fresh weights with which every embedding gives ``initial``, to the bit.

        Args:
            initial: the target tensors by name.
            generator: of the processor, so that the draw does not depend on the device.
        """
        for name, base in zip(self.names, self.base, strict=True):
            base.copy_(initial[name])
        self.trunk.draw(generator)
        self.head.draw(generator)
        return self

    def forward(self, embedding: Tensor) -> Tensors:
        """Target tensors by name, from an embedding ``(E,)``."""
        changes = self.head(self.trunk, embedding)
        return {n: base + change for n, base, change in zip(self.names, self.base, changes, strict=True)}


def _sides(shape: torch.Size) -> tuple[int, int]:
    """A target as a matrix: its first axis by all others; a vector is a column."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


@torch.no_grad()
def _normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std)


@torch.no_grad()
def _uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    tensor.copy_((torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 2 - 1) * bound)
