"""Traffic between devices in a compiled step, read from the text of its HLO.

Sizes are bytes per device. Traffic is counted for a ring algorithm, in which each of
n devices sends (n - 1) / n of the buffer.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from plmjax.train import hlo

# How many times the full buffer is sent, less the 1/n that is already local. The full
# buffer is the output of all-reduce and all-gather, and the input of the others.
RING = {
    "all-reduce": 2,  # a reduce-scatter, then an all-gather
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "ragged-all-to-all": 1,
}
KINDS = (*RING, "collective-permute", "collective-broadcast")

_OPERATION = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of a program in which devices exchange arrays.

    `bytes` is the full buffer of a device in one execution, `times` the number of
    executions in a step; `known` is False within a loop of unknown trip count, which is
    counted once. `groups` are the devices that exchange among themselves, by their
    index in the mesh; for a permutation, the pairs (from, to).
    """

    kind: str
    bytes: int
    groups: Groups
    times: int
    known: bool
    source: str  # the operation in our code that it comes from

    @property
    def size(self) -> int:
        """The number of devices that exchange among themselves."""
        return max((len(group) for group in self.groups), default=1)

    @property
    def sent(self) -> float:
        """The bytes that a device sends in a step, summed over all executions."""
        if self.size == 1:
            return 0.0
        if self.kind in RING:
            share = (self.size - 1) / self.size
            return RING[self.kind] * share * self.bytes * self.times
        return float(self.bytes * self.times)

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """Returns the axes of a mesh ({name: size}) along which it sends."""
        spans = set()
        for group in self.groups:
            coordinates = np.array(np.unravel_index(group, tuple(mesh.values())))
            spans |= set(np.flatnonzero(np.ptp(coordinates, axis=1)).tolist())
        return tuple(axis for i, axis in enumerate(mesh) if i in spans)


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, `compiled.as_text()`.

    Those within a loop are multiplied by its trip count. Operations on one device are
    left out.
    """
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    operations = (
        _collective(line, devices, times, known)
        for line, times, known in hlo.executed(text, _OPERATION)
    )
    return [operation for operation in operations if operation.size > 1]


def sent_by_axis(
    operations: list[Collective], mesh: Mapping[str, int]
) -> dict[str, dict[str, tuple[int, float]]]:
    """Returns {axes: {kind: (executions, bytes sent by a device)}} of a step.

    Axes are joined by " x " where a group spans several.
    """
    sums: dict[str, dict[str, tuple[int, float]]] = {}
    for operation in operations:
        kinds = sums.setdefault(" x ".join(operation.axes(mesh)), {})
        times, sent = kinds.get(operation.kind, (0, 0.0))
        kinds[operation.kind] = (times + operation.times, sent + operation.sent)
    return sums


def sent(operations: list[Collective]) -> float:
    """Returns the bytes that a device sends in a step."""
    return sum(operation.sent for operation in operations)


def _collective(line: str, devices: int, times: int, known: bool) -> Collective:
    operation = _OPERATION.search(line)
    assert operation is not None
    kind, started = operation[1], bool(operation[2])
    shape = line[: operation.start()].partition(" = ")[2].strip()
    if started and kind != "all-reduce":
        # The tuple holds the input, the output, and sometimes buffers of the runtime.
        shape = hlo.elements(shape)[1]
    groups = _groups(line, devices, kind)
    size = max((len(group) for group in groups), default=1)
    size_in_bytes = hlo.size_in_bytes(shape) * (size if kind == "reduce-scatter" else 1)
    source = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        kind=kind,
        bytes=size_in_bytes,
        groups=groups,
        times=times,
        known=known,
        source=source[1] if source else "",
    )


def _groups(line: str, devices: int, kind: str) -> Groups:
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
        listed = _lists(pairs[1]) if pairs else ()
        return tuple(pair for pair in listed if pair[0] != pair[1])
    listed_groups = re.search(r"replica_groups=(\{\{.*?\}\}|\S+)", line)
    if listed_groups is None or listed_groups[1].startswith("{}"):
        return (tuple(range(devices)),)
    if listed_groups[1].startswith("{"):
        return _lists(listed_groups[1])
    if listed_groups[1].startswith("mesh["):
        return _mesh_groups(line[listed_groups.start(1) :])
    iota = _IOTA.match(listed_groups[1])
    assert iota is not None, listed_groups[1]
    ids = _iota(iota[2], iota[3], math.prod(_numbers(iota[1])))
    return _rows(ids.reshape(_numbers(iota[1])))


def _mesh_groups(text: str) -> Groups:
    """Reads mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a', 'b':(1)2}.

    The devices of a group differ only along the axes in braces; 'b':(1)2 is the factor
    2 of b that has a factor of (1) before it, so the outermost one.
    """
    head = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) )?[^{]*\{(.*?)\}", text)
    assert head is not None, text[:200]
    axes = {name: int(size) for name, size in re.findall(r"'(.+?)'=(\d+)", head[1])}
    devices = math.prod(axes.values())
    ids = np.arange(devices)
    if head[2]:
        order = _IOTA.match(head[2])
        ids = (
            _iota(order[1], order[3], devices)
            if order
            else np.array(_numbers(head[2].strip("[]{}")))
        )
    # Split each axis into factors: before the wanted one, the wanted one, after it.
    factors: dict[str, list[tuple[int, bool]]] = {
        a: [(n, False)] for a, n in axes.items()
    }
    for name, before, size in re.findall(r"'?([\w]+)'?(?::\((\d+)\)(\d+))?'?", head[3]):
        axis_size, outer = axes[name], int(before or 1)
        inner = int(size or axis_size)
        factors[name] = [
            (outer, False),
            (inner, True),
            (axis_size // (outer * inner), False),
        ]
    split_axes = [part for name in axes for part in factors[name]]
    ids = ids.reshape([size for size, _ in split_axes])
    inside = [i for i, (_, wanted) in enumerate(split_axes) if wanted]
    outside = [i for i, (_, wanted) in enumerate(split_axes) if not wanted]
    group_size = math.prod(split_axes[i][0] for i in inside)
    return _rows(ids.transpose(outside + inside).reshape(-1, group_size))


def _iota(shape: str | None, order: str | None, devices: int) -> np.ndarray:
    """Returns 0, 1, ... in a shape; with `order`, transposed by it and flattened."""
    ids = np.arange(devices)
    if shape is None:
        return ids
    ids = ids.reshape(_numbers(shape))
    return ids if order is None else ids.transpose(_numbers(order)).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _lists(text: str) -> Groups:
    """Reads {{0,1},{2,3}}, with or without the outer braces."""
    return tuple(tuple(_numbers(numbers)) for numbers in re.findall(r"[\d,]*\d", text))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in ids.tolist())
