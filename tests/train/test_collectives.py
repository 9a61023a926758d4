"""solojax.train.collectives on a text written by hand and on programs of four devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import quick_jit

from solojax.train.collectives import (
    Collective,
    CollectiveInstruction,
    collective_instructions,
    collectives_of,
)
from solojax.train.sharding import batch_sharding, make_mesh, replicated

# As the TPU compiler writes: tiled layouts, asynchronous pairs, a loop of three rounds.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0:T(8,128)})->f32[8]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%body.1 (state: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %state = (s32[], bf16[16]{0:T(256)}) parameter(0)
  ROOT %all-to-all.3 = (s32[], bf16[16]{0:T(256)(128)(2,1)}) all-to-all(%state), channel_id=4
}

%condition.1 (state: (s32[], bf16[16])) -> pred[] {
  ROOT %less = pred[]{:T(512)} parameter(0)
}

%unused (x: f32[9]) -> f32[9] {
  ROOT %all-gather.9 = f32[900]{0} all-gather(%x), dimensions={0}
}

ENTRY %main.7 (p: f32[8,4], q: pred[6]) -> f32[8] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  %all-reduce-start.1 = (f32[8,4]{1,0:T(8,128)S(1)}, f32[], /*index=2*/f32[2]{0}) \
all-reduce-start(%p, %c, %d), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %all-gather-start = (pred[6]{0}, pred[24]{0}) all-gather-start(%q), dimensions={0}
  %while.2 = (s32[], bf16[16]{0}) while(%t), condition=%condition.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %all-reduce-done.1 = (f32[8,4]{1,0:T(8,128)}, f32[], f32[2]{0}) all-reduce-done(%all-reduce-start)
  %all-gather-done = pred[24]{0} all-gather-done(%all-gather-start)
  %reduce-scatter.2 = f32[2]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %reduce.1 = f32[8]{0} reduce(%p, %c), dimensions={1}, metadata={op_name="all-reduce("}
  ROOT %all-reduce.8 = u4[8]{0} all-reduce(%reduce.1), to_apply=%add
}
"""


def test_a_text_by_hand():
    assert collectives_of(TEXT) == [
        Collective("all-reduce", 2, (32 + 1 + 2) * 4 + 4),
        Collective("all-to-all", 3, 3 * (4 + 32)),
        Collective("all-gather", 1, 24),
        Collective("reduce-scatter", 1, 8),
    ]
    assert collective_instructions(TEXT) == [
        CollectiveInstruction("all-to-all", (("s32", ()), ("bf16", (16,))), times=3),
        CollectiveInstruction("all-reduce", (("f32", (8, 4)), ("f32", ()), ("f32", (2,)))),
        CollectiveInstruction("all-gather", (("pred", (24,)),)),
        CollectiveInstruction("reduce-scatter", (("f32", (2,)),)),
        CollectiveInstruction("all-reduce", (("u4", (8,)),)),
    ]


needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="fewer than 4 devices")


@needs_four
def test_programs_of_four_devices():
    mesh = make_mesh(jax.devices()[:4])
    rows, whole = batch_sharding(mesh), replicated(mesh)
    x = jax.device_put(np.ones((8, 3), np.float32), rows)

    def found(function, out):
        compiled = quick_jit(function, out_shardings=out).lower(x).compile()
        return [(each.op, each.count, each.bytes) for each in collectives_of(compiled.as_text())]

    assert found(lambda x: 2 * x, rows) == []
    assert found(lambda x: jnp.sum(x, 0), whole) == [("all-reduce", 1, 12)]
    assert found(lambda x: 2 * x, whole) == [("all-gather", 1, 8 * 3 * 4)]

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, total: jnp.sum(x * total.mean(), 0), jnp.ones(3))

    assert found(loop, whole) == [("all-reduce", 5, 5 * 12)]
