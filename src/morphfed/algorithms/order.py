"""Order statistics of several models, coordinate by coordinate: median and trimmed mean.

Both keep, of K values, those left when the ``trim`` smallest and the ``trim`` largest are dropped, and average them
(Yin, Chen, Ramchandran, Bartlett: Byzantine-robust distributed learning. ICML 2018, definitions 1 and 2). The values
are parted by a network of compare-exchanges: whole vectors through ``minimum`` and ``maximum``, without a branch and
without sorting what is dropped or averaged anyway. Vectors are walked in chunks that stay in the processor's cache,
so that the extra memory is a few chunks whatever the size and the number of the models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from morphfed.core.errors import FederationError
from morphfed.core.types import Tensors

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**15
"""Values of a chunk: the largest size that torch does not split over its threads, which are used for chunks instead."""
SCRATCH = 2**22
"""Scratch values of a thread at most: with hundreds of columns the chunks become shorter."""
WORKERS = 4
"""Threads at most; each holds the interpreter's lock for about a sixth of the time."""
JOINT = 4 * CHUNK
"""Tensors smaller than a chunk are handled together, up to so many values."""
GPU_CHUNK = 2**22
"""A launch must be worth its while on a graphics card."""

Comparator = tuple[int, int]
Columns = Sequence["Tensor"]


def coordinate_median(columns: Columns) -> Tensor:
    """Exact median of each coordinate; the mean of the two middle values where K is even.

    Args:
        columns: K ≥ 1 floating-point tensors of one shape and dtype.

    Returns:
        A new tensor of that shape and dtype. NaN in any column gives NaN at that coordinate.

    Raises:
        FederationError: the tensors are not floating-point.
        ValueError: no tensors, or they differ in shape, dtype or device.
    """
    return trimmed_mean(columns, (len(columns) - 1) // 2)


@torch.no_grad()
def trimmed_mean(columns: Columns, trim: int) -> Tensor:
    """Mean of each coordinate without its ``trim`` smallest and ``trim`` largest values; 0 gives the plain mean.

    Sums run in float32 (float64 stays float64) and do not overflow where the mean does not.

    Args:
        columns: K ≥ 1 floating-point tensors of one shape and dtype.
        trim: values dropped at either end, 0 ≤ trim < K / 2.

    Returns:
        A new tensor of that shape and dtype. NaN in any column gives NaN at that coordinate.

    Raises:
        FederationError: ``trim`` leaves nothing, or the tensors are not floating-point.
        ValueError: no tensors, or they differ in shape, dtype or device.
    """
    _check(columns, trim)
    flat, result = _flatten([column.detach() for column in columns])
    network = Network.parting(len(columns), trim)
    chunk = GPU_CHUNK if result.is_cuda else min(CHUNK, max(1, SCRATCH // max(1, network.slots)))
    starts = iter(range(0, result.numel(), chunk))
    workers = 1 if result.is_cuda else min(WORKERS, torch.get_num_threads(), -(-result.numel() // chunk))
    # `_flatten` promises that this is a view.
    out = _in_memory_order(result).view(-1)
    if workers <= 1:
        _walk(network, flat, out, starts, chunk)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(_walk, network, flat, out, starts, chunk) for _ in range(workers)]:
                done.result()
    return result


def over_names(rule: Callable[[Columns], Tensor], models: Sequence[Tensors]) -> Tensors:
    """Apply a coordinate-wise rule to every named tensor.

    Args:
        rule: such as :func:`coordinate_median`; the value at a coordinate may depend on that coordinate alone.
        models: K ≥ 1 models with the same names; shapes and dtypes agree name by name.

    Returns:
        The names in the order of the first model. Small tensors go through ``rule`` joined end to end.
    """
    found: Tensors = {}
    for names in _groups(models[0]):
        if len(names) == 1:
            found[names[0]] = rule([model[names[0]] for model in models])
            continue
        shapes = [models[0][name].shape for name in names]
        for model in models[1:]:  # joined, two wrong shapes could cancel out
            if [model[name].shape for name in names] != shapes:
                raise ValueError("the models' tensors must agree in shape, name by name")
        joined = rule([torch.cat([model[name].detach().reshape(-1) for name in names]) for model in models])
        pieces = torch.split(joined, [shape.numel() for shape in shapes])
        # Copies, so that one small tensor does not keep the whole chunk alive.
        found |= {n: p.clone().view(shape) for n, p, shape in zip(names, pieces, shapes, strict=True)}
    return {name: found[name] for name in models[0]}


def _groups(model: Tensors) -> Iterator[list[str]]:
    """Names to be handled together: small neighbours of one dtype and device, or one large tensor."""
    open_groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for name, tensor in model.items():
        if tensor.numel() >= CHUNK:
            yield [name]
            continue
        kind = (tensor.dtype, tensor.device)
        if sizes.get(kind, 0) + tensor.numel() > JOINT:
            yield open_groups.pop(kind)
            sizes[kind] = 0
        open_groups.setdefault(kind, []).append(name)
        sizes[kind] = sizes.get(kind, 0) + tensor.numel()
    yield from open_groups.values()


def _check(columns: Columns, trim: int) -> None:
    if not columns:
        raise ValueError("at least one tensor is needed")
    first = columns[0]
    for column in columns[1:]:
        if (column.shape, column.dtype, column.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"tensors must agree: {tuple(first.shape)} {first.dtype} on {first.device}, "
                f"then {tuple(column.shape)} {column.dtype} on {column.device}"
            )
    if not first.is_floating_point():
        raise FederationError(
            f"An order statistic of {first.dtype} tensors was asked for, expected floating-point ones.",
            fix="let the rule take integer buffers (counters) from one site or by their maximum.",
        )
    if not 0 <= 2 * trim < len(columns):
        raise FederationError(
            f"trim = {trim} of {len(columns)} uploads was asked for, expected 0 ≤ trim < {len(columns) / 2:g}.",
            fix="lower trim, or let more sites take part (raise federation.quorum).",
        )


def _flatten(columns: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The columns as vectors in one common order, and the result to be filled in the same order.

    Tensors that lie densely in memory in one and the same way (contiguous, channels-last) are not copied.
    """
    strides = {column.stride() for column in columns}
    if len(strides) != 1 or not _in_memory_order(columns[0]).is_contiguous():
        columns = [column.contiguous() for column in columns]
    ordered = [_in_memory_order(column) for column in columns]
    result = torch.empty_strided(
        columns[0].shape, columns[0].stride(), dtype=columns[0].dtype, device=columns[0].device
    )
    return [column.view(-1) for column in ordered], result


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A view whose axes are sorted by stride, so that a dense tensor becomes a contiguous one."""
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))


@torch.no_grad()  # a thread starts with gradients on
def _walk(network: Network, columns: list[Tensor], out: Tensor, starts: Iterator[int], chunk: int) -> None:
    """Take chunks from ``starts``, which several threads may share, until none is left."""
    scratch = list(torch.empty(network.slots, min(chunk, out.numel()), dtype=out.dtype, device=out.device))
    for start in starts:
        stop = min(start + chunk, out.numel())
        registers = [column[start:stop] for column in columns] + [slot[: stop - start] for slot in scratch]
        for least, a, b, to in network.steps:
            (torch.minimum if least else torch.maximum)(registers[a], registers[b], out=registers[to])
        _mean([registers[i] for i in network.kept], out[start:stop])


def _mean(values: list[Tensor], out: Tensor) -> None:
    """Mean of vectors. They are scaled by a power of two before they are added: exact, and the sum cannot overflow."""
    if len(values) == 1:
        out.copy_(values[0])
        return
    wide = out.dtype in (torch.float32, torch.float64)
    total = out if wide else torch.empty_like(out, dtype=torch.float32)
    power = 2 ** math.ceil(math.log2(len(values)))
    torch.mul(values[0], 1 / power, out=total)
    for value in values[1:]:
        total.add_(value, alpha=1 / power)
    if power != len(values):
        total.mul_(power / len(values))
    if not wide:
        out.copy_(total)


@dataclass(frozen=True)
class Network:
    """A program of ``minimum`` and ``maximum`` over registers.

    Registers 0 … K - 1 are the inputs and are only read; ``slots`` scratch registers follow.

    Attributes:
        steps: (minimum?, first input, second input, output).
        slots: number of scratch registers.
        kept: registers that hold, at the end, the values that were not dropped, in no special order.
    """

    steps: tuple[tuple[bool, int, int, int], ...]
    slots: int
    kept: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=64)
    def parting(width: int, trim: int) -> Network:
        """The program that drops the ``trim`` smallest and largest of ``width`` values.

        Of two constructions the one with fewer steps is taken: a sorting network wins for a median, repeated removal
        of both extremes where little is trimmed.
        """
        candidates = [_prune(pairwise_sorter(width), width, trim), _prune(peeler(width, trim), width, trim)]
        return _allocate(min(candidates, key=lambda wired: sum(low + high for *_, low, high in wired)), width, trim)


def pairwise_sorter(width: int) -> list[Comparator]:
    """Comparators of a network that sorts ``width`` values, smallest first.

    Parberry: The pairwise sorting network. Parallel Processing Letters 2 (1992) 205-211.
    """
    comparators: list[Comparator] = []
    gap = 1
    while gap < width:  # sort pairs at distances 1, 2, 4, …
        comparators += [(i, i + gap) for i in range(width - gap) if not i & gap]
        gap *= 2
    spread = 1
    gap //= 4
    while gap:  # merge the sequences of the smaller and of the larger ones
        step = spread
        while step:
            reach = step * gap
            comparators += [(i, i + reach) for i in range(gap, width - reach) if i & gap]
            step //= 2
        gap //= 2
        spread = 2 * spread + 1
    return comparators


def peeler(width: int, trim: int) -> list[Comparator]:
    """Comparators that bring the smallest and the largest values to the outer wires, one of each at a time."""
    comparators: list[Comparator] = []
    for low in range(trim):
        wires = range(low, width - low)
        half = len(wires) // 2
        comparators += [(wires[i], wires[-1 - i]) for i in range(half)]
        comparators += [(low, wire) for wire in wires[1 : len(wires) - half]]
        comparators += [(wire, wires[-1]) for wire in wires[half:-1]]
    return comparators


def _prune(comparators: Sequence[Comparator], width: int, trim: int) -> list[tuple[int, int, bool, bool]]:
    """Leave out what does not change which values end on the middle wires.

    Walking backwards, two wires that are both dropped, or both kept, need not be compared: their order is of no
    interest. A comparator one of whose outputs is dropped needs to make only the other.

    Returns:
        (first wire, second wire, whether the smaller is needed, whether the larger is needed).
    """
    fate = ["dropped"] * trim + ["kept"] * (width - 2 * trim) + ["dropped"] * trim
    needed: list[tuple[int, int, bool, bool]] = []
    for a, b in reversed(comparators):
        if fate[a] == fate[b] != "compared":
            continue
        needed.append((a, b, fate[a] != "dropped", fate[b] != "dropped"))
        fate[a] = fate[b] = "compared"
    return needed[::-1]


def _allocate(wired: Sequence[tuple[int, int, bool, bool]], width: int, trim: int) -> Network:
    """Give every value a register; scratch registers are used again as soon as their value has been read."""
    at = list(range(width))
    free: list[int] = []
    slots = 0
    steps: list[tuple[bool, int, int, int]] = []

    def fresh() -> int:
        nonlocal slots
        if free:
            return free.pop()
        slots += 1
        return width + slots - 1

    for a, b, low, high in wired:
        x, y = at[a], at[b]
        scratch = [register for register in (x, y) if register >= width]
        if low and high:
            at[a] = fresh()
            steps.append((True, x, y, at[a]))
        last = scratch.pop() if scratch else fresh()  # the last step may overwrite what it reads
        at[b if high else a] = last
        steps.append((not high, x, y, last))
        free += scratch
    return Network(tuple(steps), slots, tuple(at[trim : width - trim]))
