"""Traffic by operation, on the text of a program written by hand."""

from __future__ import annotations

from solojax.aot.traffic import Traffic, traffic_by_operation

# Sizes: f32[8,128] 4096 bytes; f32[200,130] is padded by its tiles to 200 x 256, 204800 bytes;
# bf16[16,128] 4096; pred[32,128] 4096.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %inner = f32[8,128]{1,0:T(8,128)} multiply(%a, %a), metadata={op_name="jit(step)/hidden/mul"}
}

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %part = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %step = f32[8,128]{1,0:T(8,128)} negate(%part), metadata={op_name="jit(step)/loop/while/body/neg"}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%part, %step)
}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %go = pred[]{:T(512)} constant(true)
}

ENTRY %main (x: f32[8,128], y: f32[200,130]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %y = f32[200,130]{1,0:T(8,128)} parameter(1), metadata={op_name="y"}
  %squared = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(Net)/neck/mul"}
  %near = f32[8,128]{1,0:T(8,128)S(1)} fusion(%squared, %squared), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(Net)/head/mul"}
  %kept = f32[8,128]{1,0:T(8,128)S(1)} negate(%near), metadata={op_name="jit(step)/jvp(Net)/quiet/neg"}
  %padded = f32[200,130]{1,0:T(8,128)} add(%y, %y), metadata={op_name="jit(step)/jvp(Net)/padded/add"}
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[200,130]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) slice-start(%padded), slice={[0:8], [0:128]}
  %slice-done = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %zero = s32[]{:T(128)} constant(0)
  %tuple = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %squared)
  %while = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %packed = bf16[16,128]{1,0:T(8,128)(2,1)} copy(%zero)
  ROOT %result = pred[32,128]{1,0:T(8,128)(4,1)} compare(%x, %near), metadata={op_name="jit(step)/positive"}
}
"""  # noqa: E501

EXPECTED = {
    "jvp(Net)/neck": 2 * 4096,  # reads x, writes its square
    "jvp(Net)/head": 4096,  # reads the square once, writes on the chip
    "jvp(Net)/padded": 2 * 204800 + 4096,  # reads and writes; its slice is copied to the chip
    "x": 4096,  # copied to the chip
    "loop/while/body": 5 * 2 * 4096,
    "(copies of arguments)": 4096 + 4,  # nothing says what the packed array is; reads a number
    "positive": 4096 + 4096,  # reads x alone from memory
}


def test_traffic_of_every_operation():
    found = traffic_by_operation(PROGRAM)
    assert {each.operation: each.bytes for each in found} == EXPECTED
    assert [each.bytes for each in found] == sorted(EXPECTED.values(), reverse=True)


def test_the_largest_array_of_an_operation_is_named():
    assert traffic_by_operation(PROGRAM)[0] == Traffic(
        "jvp(Net)/padded", EXPECTED["jvp(Net)/padded"], "f32[200,130]{1,0:T(8,128)}"
    )


def test_a_program_that_does_nothing():
    assert traffic_by_operation("") == []
