"""Collectives read from HLO: by hand what a line says, and the real step's against its
parameter count."""

import functools
import re

import jax
import pytest
from test_step import ENCODER, lowered, make_batch, pieces

from plmjax import tree
from plmjax.objectives import MLM, MLMConfig
from plmjax.train import collectives as lib

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"


def program(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEAD}{more}ENTRY %main.1 (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def only(*lines: str, more: str = "") -> lib.Collective:
    (found,) = lib.collectives(program(*lines, more=more))
    return found


@pytest.mark.parametrize(
    "line, size_in_bytes, sent",
    [
        # An array, and several in a tuple with the comments that the printer adds.
        ("%a = f32[10,8]{1,0} all-reduce(%x), replica_groups={}", 320, 2 * 320 * 7 / 8),
        (
            "%a = (f32[6]{0}, bf16[2,3]{1,0}, /*index=2*/pred[4]{0}) all-reduce(%x, "
            "%y, /*index=2*/%z), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
            24 + 12 + 4,
            2 * 40 * 3 / 4,
        ),
        ("%a = f32[] all-reduce-start(%x), replica_groups={{0,1}}", 4, 4),
        # What each device holds in the end.
        ("%a = s32[16]{0} all-gather(%x), replica_groups=[2,4]<=[8]", 64, 48),
        (
            "%a = (bf16[2,4]{1,0:T(8,128)(2,1)}, bf16[8,4]{1,0:T(8,128)(2,1)}) "
            "all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}",
            64,
            48,
        ),
        (
            "%a = ((f32[2], f32[1]), (f32[8], f32[4]), u32[]) all-gather-start(%x, %y)"
            ", replica_groups=[2,4]<=[8], dimensions={0}",
            48,
            36,
        ),
        # What each device began with.
        (
            "%a = f32[4]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}",
            64,
            48,
        ),
        (
            "%a = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%x), "
            "replica_groups=[2,4]<=[4,2]T(1,0)",
            64,
            48,
        ),
        (
            "%a = (f32[4]{0}, f32[4]{0}) all-to-all(%x, %y), replica_groups={{0,1}}",
            32,
            16,
        ),
        (
            "%a = f32[4]{0} collective-permute(%x), source_target_pairs={{0,0},{1,2}}",
            16,
            16,
        ),
        (
            "%a = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), "
            "source_target_pairs={{1,2},{2,1}}",
            16,
            16,
        ),
        ("%a = s4[3]{0} all-gather(%x), replica_groups={{0,1}}", 2, 1),
        ("%a = f8e4m3fn[8]{0} all-gather(%x), replica_groups={{0,1}}", 8, 4),
        ("%a = c64[2]{0} all-gather(%x), replica_groups={{0,1}}", 16, 8),
    ],
)
def test_a_line_says_what_is_sent(line, size_in_bytes, sent):
    found = only(line)
    assert (found.bytes, found.sent) == (size_in_bytes, sent)
    assert (found.times, found.known) == (1, True)


def test_what_sends_nothing_is_left_out():
    lines = (
        "%a = f32[10]{0} all-reduce(%x), replica_groups={{0},{1}}",
        "%b = f32[10]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}",
        # The end of what was counted when it began, and an operand's name.
        "%c = f32[10]{0} all-reduce-done(%all-reduce-start.1)",
        "%d = f32[10]{0} add(%all-gather.1, %all-to-all)",
    )
    assert lib.collectives(program(*lines)) == []


@pytest.mark.parametrize(
    "groups, axes, first",
    [
        ("{}", "data fsdp tensor", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("{{0,1},{2,3},{4,5},{6,7}}", "tensor", (0, 1)),
        ("[4,2]<=[8]", "tensor", (0, 1)),
        ("[2,4]<=[8]", "fsdp tensor", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", "data", (0, 4)),
        ("[4,2]<=[2,2,2]T(0,2,1)", "fsdp", (0, 2)),
        ("[2,4]<=[4,2]T(1,0)", "data fsdp", (0, 2, 4, 6)),
        ("mesh['a'=8,'b'=1] {'a'}", "data fsdp tensor", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("mesh['a'=2,'b'=4] {'a'}", "data", (0, 4)),
        (
            "mesh['a'=4,'b'=2], device_ids=([2,2,2]T(1,0,2)) {'a'}",
            "data fsdp",
            (0, 4, 2, 6),
        ),
        ("mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}", "fsdp", (0, 2)),
        ("mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}", "fsdp", (0, 2)),
        # Factors of an axis: the outer 2 of 4 and the inner 2.
        ("mesh['a'=2,'b'=4] {'b':(1)2}", "fsdp", (0, 2)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", "tensor", (0, 1)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a', 'c'}", "data tensor", (0, 1, 4, 5)),
    ],
)
def test_groups_name_the_axes_they_span(groups, axes, first):
    found = only(f"%a = f32[8] all-reduce(%x), replica_groups={groups}, to_apply=%add")
    assert found.axes({"data": 2, "fsdp": 2, "tensor": 2}) == tuple(axes.split())
    assert found.groups[0] == first
    assert sorted(i for group in found.groups for i in group) == list(range(8))


def test_a_permutation_spans_the_axes_of_its_pairs():
    pairs = "{{0,0},{1,4},{4,1},{5,5}}"
    found = only(f"%a = f32[8] collective-permute(%x), source_target_pairs={pairs}")
    assert found.groups == ((1, 4), (4, 1))
    assert found.axes({"data": 2, "fsdp": 2, "tensor": 2}) == ("data", "tensor")


GATHERED = """\
%{} (x: bf16[2]) -> bf16[8] {{
  %g = bf16[8]{{0}} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={{0}}
}}

"""


def test_the_pieces_of_an_asynchronous_collective_count_once():
    names = ("start", "async_collective_fusion.1", "end")
    found = only(
        "%async-collective-start.1 = bf16[8] fusion(%x), calls=%start",
        "%f = bf16[8] fusion(%x), kind=kOutput, calls=%async_collective_fusion.1",
        "%async-collective-done.1 = bf16[8] fusion(%x), calls=%end",
        more="".join(map(GATHERED.format, names)),
    )
    assert (found.kind, found.bytes, found.times) == ("all-gather", 16, 1)


BODY = """\
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
}

%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %c = pred[] compare(%i, %n), direction=LT
}

"""


def test_a_loop_multiplies_by_its_turns():
    trips = 'backend_config={"known_trip_count":{"n":"5"}}'
    loop = "%w = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1"
    found = only(f"{loop}, {trips}", more=BODY)
    assert (found.times, found.known, found.sent) == (5, True, 5 * 2 * 32 * 7 / 8)
    assert lib.sent_by_axis([found], {"data": 8, "fsdp": 1, "tensor": 1}) == {
        "data": {"all-reduce": (5, 280.0)}
    }
    # Not told: once, and said.
    found = only(loop, more=BODY)
    assert (found.times, found.known) == (1, False)


def test_loops_within_loops_calls_and_branches():
    more = BODY + (
        "%outer.1 (p: f32[8]) -> f32[8] {\n"
        "  %w = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1, "
        'backend_config={"known_trip_count":{"n":"3"}}\n'
        "}\n\n"
    )
    lines = (
        "%v = f32[8] while(%t), condition=%cond.1, body=%outer.1, backend_config="
        '{"known_trip_count":{"n":"2"}}',
        "%call = f32[8] call(%t), to_apply=%body.1",
        "%if = f32[8] conditional(%p, %a, %b), branch_computations={%body.1, %cond.1}",
        "%start = ((f32[8]), f32[8]) async-start(%t), calls=%body.1",
    )
    found = lib.collectives(program(*lines, more=more))
    assert [one.times for one in found] == [6, 1, 1, 1]


# What the step of test_step trains, in bytes of float32; and the loss, metrics and
# counts beside the gradients: less than this.
SMALL = 200


@functools.cache
def compiled(mesh_sizes, accumulation: int, unit: str = "word") -> str:
    return lowered(mesh_sizes, accumulation, unit).compile().as_text()


def parameter_bytes() -> int:
    objective = MLM(MLMConfig(), ENCODER, pieces(96))
    return tree.size_in_bytes(
        jax.eval_shape(objective.init, jax.random.key(0), make_batch())
    )


@pytest.mark.parametrize(
    "accumulation", [pytest.param(1, marks=pytest.mark.campaign), 4]
)
@pytest.mark.timeout(120)
def test_a_data_parallel_step_sends_the_gradients_once(accumulation):
    found = lib.collectives(compiled((8, 1, 1), accumulation))
    assert {one.kind for one in found} == {"all-reduce"}
    assert all(one.known and one.times == 1 for one in found)
    assert 0 <= lib.sent(found) * 8 / (2 * 7) - parameter_bytes() < SMALL


@pytest.mark.parametrize(
    "unit",
    [
        "word",
        *(
            pytest.param(u, marks=pytest.mark.campaign)
            for u in ("token", "span", "ngram")
        ),
    ],
)
def test_the_data_mesh_reduces_once_after_the_accumulation_loop(unit):
    text = compiled((8, 1, 1), 4, unit)
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {other}(" not in text
    # Computations are separated by blank lines; the entry is not the loop's body.
    entry = next(b for b in text.split("\n\n") if b.startswith("ENTRY "))
    reductions = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    assert reductions == re.findall(r"= (.*) all-reduce(?:-start)?\(", entry)
    before, after = entry[: entry.index(" while(")], entry[entry.index(" while(") :]
    # Before the loop, the number of masked tokens: one scalar. After it, all gradients.
    assert re.findall(r"= (\S+) all-reduce", before) == ["f32[]"]
    assert len(re.findall(r" all-reduce(?:-start)?\(", after)) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_fsdp_step_gathers_weights_and_scatters_gradients_once():
    """Nothing that grows with the batch is sent, whatever the accumulation."""
    found = lib.collectives(compiled((1, 8, 1), 2))
    assert all(one.known and one.times == 1 for one in found)
    sums = lib.sent_by_axis(found, {"data": 1, "fsdp": 8, "tensor": 1})["fsdp"]
    assert sums.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    split = sums["all-gather"][1]
    assert split == sums["reduce-scatter"][1]
    # What a rule keeps whole is summed, as are loss and metrics.
    whole = sums["all-reduce"][1] / 2
    assert 0 <= (split + whole) * 8 / 7 - parameter_bytes() < SMALL
    assert split > 0.8 * parameter_bytes() * 7 / 8


@pytest.mark.campaign
@pytest.mark.timeout(120)
def test_every_collective_of_the_mixed_mesh_is_understood():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found = lib.collectives(compiled((2, 2, 2), 2))
    assert all(one.known for one in found)
    # The loop of two micro-batches.
    assert {one.times for one in found} == {1, 2}
    sums = lib.sent_by_axis(found, mesh)
    total = sum(sent for kinds in sums.values() for _, sent in kinds.values())
    assert total == pytest.approx(lib.sent(found))
    # Gradients; weights that are put together; activations.
    assert {"data x fsdp", "fsdp", "tensor"} <= sums.keys()
