"""The text of a compiled program (HLO): its operations, and what they move."""

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
# A TPU's asynchronous collective is copied into each fusion that it runs beside, and
# into its end; its start is what counts.
_PIECE = re.compile(r"%?async-collective-done\S* = |calls=%?async_collective_fusion")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")


def executed(text: str, leaf: re.Pattern) -> Iterator[tuple[str, int, bool]]:
    """Yields the lines that `leaf` matches, how often each runs, whether that is known.

    Bodies of loops are multiplied by their trip counts; those of unknown loops, and all
    branches of a conditional, are counted once. What a leaf calls is left out.
    """
    bodies, entry = _computations(re.sub(r"/\*.*?\*/", "", text))
    yield from _executed(bodies, entry, leaf, 1, True)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif "(" in line:
            lines.append(line)
    return bodies, entry


def _executed(
    bodies: dict[str, list[str]], name: str, leaf: re.Pattern, times: int, known: bool
) -> Iterator[tuple[str, int, bool]]:
    for line in bodies[name]:
        if leaf.search(line):
            yield line, times, known
            continue
        if _PIECE.search(line):
            continue
        called = [other for _, other in _CALLED.findall(line)]
        for branches in _BRANCHES.findall(line):
            called += [other.strip(" %") for other in branches.split(",")]
        turns, exact = 1, True
        if " while(" in line:
            trips = _TRIPS.search(line)
            turns, exact = (int(trips[1]), True) if trips else (1, False)
        for other in called:
            if other in bodies:
                yield from _executed(
                    bodies, other, leaf, times * turns, known and exact
                )


def elements(shape: str) -> list[str]:
    """Returns the elements of a tuple's shape, "(a, (b, c))" -> ["a", "(b, c)"]."""
    depth, begin, found = 0, 1, []
    for at, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            found.append(shape[begin:at].strip())
            begin = at + 1
    return found


def size_in_bytes(shape: str, memory: bool = False) -> int:
    """Returns the bytes of the arrays in a shape, "(f32[2,3]{1,0}, pred[])" -> 25.

    With `memory`, only of those in the device's large memory: a layout with S(1) or
    more places an array on the chip, or on the host.
    """
    total = 0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if memory and re.search(r"S\([1-9]", layout):
            continue
        bits = re.search(r"\d+", kind)
        width = 8 if kind == "pred" else int(bits[0]) if bits else 0
        lengths = [int(n.strip("<=")) for n in sizes.split(",") if n]
        total += math.ceil(width * math.prod(lengths) / 8)
    return total


@dataclasses.dataclass(frozen=True)
class Movement:
    """The bytes that one operation of a program reads and writes in a step.

    `times` and `known` are its executions, as of `executed`.
    """

    bytes: int
    times: int
    known: bool
    operation: str  # of the program: fusion, copy, the name of a library's kernel
    shape: str  # of its results
    source: str  # the operation in our code that it comes from

    @property
    def total(self) -> int:
        return self.bytes * self.times


_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?(?P<name>%?[\w.\-]+) = (?P<shape>\(.*?\)|\S+) "
    r"(?P<operation>[\w\-]+)\((?P<operands>.*?)\)"
)
# What runs another computation of the program, whose operations are counted.
_CALLS = ("while", "conditional", "call")
_LEAF = re.compile(rf" = (?:\(.*?\)|\S+) (?!(?:{'|'.join(_CALLS)})\()[\w\-]+\(")
_MOVES_NOTHING = (
    "parameter constant tuple get-tuple-element bitcast after-all partition-id "
    "replica-id opt-barrier"
).split()

_SLICES = ("slice", "slice-start", "dynamic-slice", "dynamic-slice-start")


def movements(text: str) -> list[Movement]:
    """Returns the operations of a compiled program, `compiled.as_text()`, by its order.

    An operation reads its operands and writes its results once. What a kernel reads
    twice counts once; of what it gathers from, all counts.
    """
    shapes = {
        found["name"]: found["shape"]
        for found in map(_INSTRUCTION.match, text.splitlines())
        if found
    }
    moved = []
    for line, times, known in executed(text, _LEAF):
        found = _INSTRUCTION.match(line)
        if found is None or found["operation"] in _MOVES_NOTHING:
            continue
        operation, shape = found["operation"], found["shape"]
        # An asynchronous operation reads at its start and writes at its end.
        starts, ends = operation.endswith("-start"), operation.endswith("-done")
        written = 0 if starts else size_in_bytes(shape, memory=True)
        operands = [] if ends else re.findall(r"%[\w.\-]+", found["operands"])
        read = sum(size_in_bytes(shapes.get(o, ""), memory=True) for o in operands)
        if operation in _SLICES:
            read = min(read, size_in_bytes(elements(shape)[1] if starts else shape))
        target = re.search(r'custom_call_target="([^"]+)"', line)
        source = re.search(r'op_name="([^"]*)"', line)
        moved.append(
            Movement(
                bytes=read + written,
                times=times,
                known=known,
                operation=target[1] if target else operation,
                shape=shape,
                source=source[1] if source else "",
            )
        )
    return moved


def bytes_moved(text: str) -> int:
    """Returns the bytes that a device reads and writes in a compiled program."""
    return sum(one.total for one in movements(text))


# Parts of a name that say nothing of where an operation stands in the model.
_NO_PLACE = re.compile(r"jit\(|shard_map|^Encoder$|layer\._?|\.\.\.")


def place(source: str) -> str:
    """Returns "ffn/up, product, backward" of an operation's name in our code.

    What the compiler adds has no name.
    """
    first = source.split(";")[0]
    if not first.startswith("jit(step)/"):  # arguments, or what the compiler added
        return "(copies and the like)"
    *parts, operation = first.split("/")[1:]
    passed = "backward" if any(p.startswith("transpose(") for p in parts) else "forward"
    passed = passed if any("jvp(" in part for part in parts) else ""
    names = []
    for part in parts:
        inner = re.sub(r"^(transpose\()?jvp\((.*?)\)+$", r"\2", part)
        inner = re.sub(r"\blayer_\d+", "layer", inner)
        if inner and not _NO_PLACE.search(inner):
            names.append(inner)
    kind = "product" if operation.startswith("dot_general") else ""
    outside = "loss" if passed else "optimizer and the like"
    outside = "between the parts of a layer" if "layer_" in source else outside
    where = "/".join(names) or outside
    return ", ".join(filter(None, (where, kind, passed)))


def places(text: str) -> dict[str, str]:
    """Returns {name of an operation of a compiled program: its `place`}.

    What calls others is left out. A profile has the same names.
    """
    found = {}
    for line in text.splitlines():
        if (one := _INSTRUCTION.match(line)) and one["operation"] not in _CALLS:
            source = re.search(r'op_name="([^"]*)"', line)
            found[one["name"].lstrip("%")] = place(source[1] if source else "")
    return found
