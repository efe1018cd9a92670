"""What a program moves, by hand: operands read once, results written once."""

import pytest

import bytes as program
from plmjax.train import hlo

HEAD = "HloModule jit_step, is_scheduled=true\n\n"


def moved(*lines: str, more: str = "") -> list[hlo.Movement]:
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.movements(
        f"{HEAD}{more}ENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}"
    )


PARAMETERS = (
    "%p.1 = f32[8,4]{1,0} parameter(0)",
    "%q = bf16[10]{0:T(8,128)(2,1)S(1)} parameter(1)",
)


@pytest.mark.parametrize(
    "lines, total",
    [
        # A fusion: 128 bytes read, 64 + 6 written; what is kept on the chip is neither.
        (
            [
                "ROOT %f = (bf16[8,4]{1,0}, /*index=1*/bf16[3]{0}) fusion(%p.1, %q), "
                'kind=kLoop, calls=%fused, metadata={op_name="jit(step)/mul"}'
            ],
            198,
        ),
        (["%f = f32[100]{0:T(128)S(1)} fusion(%p.1), kind=kLoop, calls=%fused"], 128),
        # What gives another name to an array moves nothing.
        (
            [
                "%t = (f32[8,4]{1,0}) tuple(%p.1)",
                "%g = f32[8,4]{1,0} get-tuple-element(%t), index=0",
                "%b = f32[32]{0} bitcast(%g)",
            ],
            0,
        ),
        # A slice reads what it gives; asynchronously, it reads first and writes then.
        (["%s = f32[2,4]{1,0} slice(%p.1), slice={[0:2], [0:4]}"], 64),
        (
            [
                "%s = ((f32[8,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) "
                "slice-start(%p.1), slice={[0:2], [0:4]}",
                "%d = f32[2,4]{1,0:S(1)} slice-done(%s)",
            ],
            32,
        ),
        (
            [
                "%s = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]) copy-start(%p.1)",
                "%d = f32[8,4]{1,0} copy-done(%s)",
            ],
            256,
        ),
    ],
)
def test_bytes_of_an_operation(lines, total):
    assert sum(one.total for one in moved(*PARAMETERS, *lines)) == total


LOOP = """\
%fused (x: f32[8,4]) -> f32[8,4] {
  ROOT %n = f32[8,4]{1,0} negate(%x)
}

%body (s: (f32[8,4])) -> (f32[8,4]) {
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=0
  %y = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %o = (f32[8,4]{1,0}) tuple(%y)
}

%cond (s: (f32[8,4])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

"""


@pytest.mark.parametrize("trips, times", [("3", 3), (None, 1)])
def test_a_loop_moves_as_often_as_it_turns(trips, times):
    known = (
        f', backend_config={{"known_trip_count":{{"n":"{trips}"}}}}' if trips else ""
    )
    loop = "%w = (f32[8,4]{1,0}) while(%t), condition=%cond, body=%body" + known
    (one,) = moved(*PARAMETERS, "%t = (f32[8,4]) tuple(%p.1)", loop, more=LOOP)
    assert (one.total, one.known) == (256 * times, trips is not None)


def test_a_kernel_of_a_library_has_its_name():
    line = '%c = f32[4]{0} custom-call(%p.1), custom_call_target="__cublas$gemm"'
    (one,) = moved(*PARAMETERS, line)
    assert (one.operation, one.bytes) == ("__cublas$gemm", 144)


ATTEND = "layer_7.attend/layer_7._around/attention"


@pytest.mark.parametrize(
    "source, what",
    [
        ("", "(copies and the like)"),
        ("state.params['a']", "(copies and the like)"),
        ("jit(step)/jit(_where)/select_n", "optimizer and the like"),
        ("jit(step)/jvp()/reduce_sum", "loss, forward"),
        (
            "jit(step)/jvp(Encoder)/layer_3.feed/layer_3._around/add",
            "between the parts of a layer, forward",
        ),
        (
            f"jit(step)/jvp(Encoder)/{ATTEND}/query/dot_general;jit(step)",
            "attention/query, product, forward",
        ),
        (
            f"jit(step)/shard_map/transpose(jvp(Encoder))/{ATTEND}/...qd,...kd->...qk/"
            "dot_general",
            "attention, product, backward",
        ),
        (
            "jit(step)/transpose(jvp(VocabularyHead))/transform/mul",
            "VocabularyHead/transform, backward",
        ),
    ],
)
def test_what_moves_is_named_by_its_place_in_the_model(source, what):
    assert hlo.place(source) == what


def test_groups_join_layers_and_are_sorted():
    def one(size, layer, times=1):
        source = (
            f"jit(step)/jvp(Encoder)/layer_{layer}.feed/layer_{layer}._around/ffn/a"
        )
        return hlo.Movement(size, times, True, "fusion", "f32[2]{0}", source)

    found = program.by_group([one(10, 0), one(30, 1, times=2), one(5, 0)])
    assert found == [
        {"what": "ffn, forward", "bytes": 75, "operations": 4, "shape": "f32[2]"}
    ]
