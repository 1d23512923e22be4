"""Reading a scheduled program: kernels, their bytes and FLOPs, communication."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medjax.runs.ahead import cards, compiled, hlo

# What XLA:GPU writes, shortened: a convolution with channels last and the gradient of its kernel,
# a product in a loop of three, a fusion, a conditional, a pair of an asynchronous gathering.
TEXT = """
HloModule jit_update, is_scheduled=true

%fused (p.1: f32[8,4]) -> f32[4,8] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %t = f32[4,8]{1,0} transpose(%p.1), dimensions={1,0}
}

%body (arg: (s32[], bf16[16,32])) -> (s32[], bf16[16,32]) {
  %arg = (s32[], bf16[16,32]{1,0}) parameter(0)
  %left = bf16[16,32]{1,0} get-tuple-element(%arg), index=1
  %right = bf16[32,32]{1,0} constant({...})
  %cc = (bf16[16,32]{1,0}, s8[64]{0}) custom-call(%left, %right), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = (s32[], bf16[16,32]{1,0}) tuple(%left)
}

%left_branch (b: f32[8,4]) -> f32[8,4] {
  %b = f32[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} copy(%b)
}

%right_branch (d: f32[8,4]) -> f32[8,4] {
  ROOT %d = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (x: bf16[2,6,6,6,3], w: bf16[5,3,3,3,3], f: f32[8,4]) -> f32[4,8] {
  %x = bf16[2,6,6,6,3]{4,3,2,1,0} parameter(0)
  %w = bf16[5,3,3,3,3]{4,3,2,1,0} parameter(1)
  %f = f32[8,4]{1,0} parameter(2)
  %conv = (bf16[2,6,6,6,5]{4,3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(update)/UNet/conv"}
  %y = bf16[2,6,6,6,5]{4,3,2,1,0} get-tuple-element(%conv), index=0
  %wgrad = (bf16[5,3,3,3,3]{4,3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3x3}, dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convBackwardFilter"
  %loop = (s32[], bf16[16,32]{1,0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %either = f32[8,4]{1,0} conditional(%pred, %f, %f), branch_computations={%left_branch, %right_branch}
  %start = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%either), dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  ROOT %fusion = f32[4,8]{1,0} fusion(%done), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_kernels_of_a_scheduled_program():
    found = hlo.kernels(TEXT)
    by = {k.kind: k for k in found}
    conv, wgrad = by["convolution"], by["convolution, gradient of the kernel"]
    products = 2 * (2 * 6**3 * 5) * 27 * 3
    assert (conv.flops, conv.layout, conv.scope) == (
        products,
        "channels last",
        "jit(update)/UNet/conv",
    )
    assert conv.bytes == 2 * (2 * 6**3 * (3 + 5) + 5 * 27 * 3)
    assert wgrad.layout == "channels first"
    product = by["product"]
    assert (product.flops, product.times) == (2 * 16 * 32 * 32, 3)
    assert product.bytes == 2 * (2 * 16 * 32 + 32 * 32) + 64
    assert by["copy"].times == 0.5 and by["transpose"].bytes == 2 * 4 * 32
    assert "conditional" in by and by["all-gather"].times == 1
    assert hlo.collectives(TEXT) == {"all-gather": 1}
    assert product.seconds(1e9, 1e6) == pytest.approx(3 * product.bytes / 1e6)


def test_the_summary_and_its_text():
    card = cards.known()["h200"]
    found = compiled.summary(hlo.kernels(TEXT), card)
    assert found["convolutions"] == {"channels last": 1, "channels first": 1}
    assert found["collectives"] == {"all-gather": 1}
    assert found["floor_s"] == pytest.approx(sum(row[3] for row in found["kinds"].values()))
    assert found["flops"] >= 3 * 2 * 16 * 32 * 32
    found |= {"cards": 2, "layout": "2 devices", "compile_s": 3.0, "cpu_s": 4.0, "trace_s": 1.0}
    found |= {"lower_s": 1.0, "peak": 2**31, "arguments": 2**30, "temporary": 2**30}
    text = compiled.text(found, card)
    assert "2 x NVIDIA H200" in text and "not" not in text.splitlines()[1]
    assert "peak memory          2.00 GiB of 141.00 GiB" in text and "1 all-gather" in text


def test_communication_of_a_program_on_simulated_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=split)
    text = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile().as_text()
    assert hlo.collectives(text) == {"all-reduce": 1}
