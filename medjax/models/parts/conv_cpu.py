"""Dense convolutions and their gradients on a CPU, built from fast 2D convolutions and products.

In and out: volumes (b, z, y, x, c) float32 and kernels (kz, ky, kx, i, o) with odd sides, padding
(k - 1) / 2; or the same without z. Everything iterates over the volume in slabs along the first
axis: the data of a slab stay in the cache, the temporaries stay at a few MB (memory that is new in
a step costs about 0.5 ms per MB in page faults), and the volume is never copied. This design
depends on the following facts about jax 0.10:
  - XLA:CPU's 2D convolution with dense channels last runs like a matrix product (105 GFLOP/s a core
    here), its 3D convolution at a third of that, and gradients of strided convolutions
    (`lhs_dilation`) up to 100 times slower still;
  - that 2D convolution uses several threads only along its last spatial axis, so y and x are
    flattened into one: taps along y become dilated taps, taps along x three convolutions (for few
    channels, three times the channels);
  - products (`dot_general`) of this size use all threads.

`process_time` in cpu-ms, both threads together, on 2 cores of an AMD EPYC (Zen 4) shared with other
work; batch 2, kernel 3^3. In brackets PyTorch 2.13 (oneDNN) on 2 threads:

  layer                         | XLA 3D        | 27 products | 2D per | chosen
                                |               |             | tap z  |
                                | fwd  dx   dw  | fwd   dw    | fwd    | fwd       dx        dw
  40x56x40, 32 -> 32            | 525  525  872 | 531   582   | 164    | 103 (139) 103  (78) 132
  (79)
  40x56x40, 64 -> 32            | 1048 671 1720 | 943  1190   | 292    | 210 (217) 207 (182) 266
  (185)
  20x28x20, 64 -> 64            | 156  156  270 | 141   194   |  50    |  49  (40)  49  (42)  58
  (47)
  20x28x20, 128 -> 64           | 312  196  536 | 298   322   | 116    | 105  (81) 108  (81) 117
  (88)
  10x14x10, 128 -> 128          |  49   49  103 |  47    51   |  27    |  25  (17)  25  (18)  28
  (23)
  5x7x5, 256 -> 256             |  20   22   44 |  13    17   |  13    |  15   (8)  15   (8)  15
  (10)
  40x56x40, 1 -> 32             | 109   -    61 |   6    45   |  70    |  10  (31)   -        19
  (18)
  40x56x40, 16 -> 16            | 252   -   500 |   -   267   |  52    |  37        37        43
  40x56x40, 24 -> 24            | 401   -   723 |   -   448   |  92    |  65        65         -
  40x56x40, 32 -> 64, stride 2  |  80 4538  407 |   -     -   |   -    |  43  (25)  40  (42)  56
  (31)
  20x28x20, 64 -> 128, stride 2 |  26 1169  100 |   -     -   |   -    |  17   (9)  20  (14)  20
  (14)

Also tried, for the first layer: im2col of 27 or 9 taps and products, fwd 793 and 611; channels
tripled along z or x before a 2D convolution of the whole volume 187 and 153, the three flattened
ones without slabs 162; dw as products of shifted copies in the cache 229, with x tripled instead of
dy 216. For stride 2: space-to-depth and a 2^3 kernel, fwd 74 and dx 74.
"""

import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

SLAB = (
    2**21
)  # bytes a slab may have: with its neighbours and results it then stays in the L2 and L3 caches
COLUMNS = 2**22  # ... of a strided convolution's columns
SPREAD = 2**24  # ... of the columns of its input gradient, whose slabs overlap by a row
FEW = range(8, 17)  # numbers of channels that run faster if tripled along x


def forward(
    x: Float[Array, "b *vol i"], kernel: Float[Array, "*k i o"], strides: tuple[int, ...]
) -> Float[Array, "b *out o"]:
    """The convolution; every side becomes ceil(side / stride)."""
    if max(strides) > 1:
        return _planar(_strided, len(strides), x, kernel, strides=_three(strides))
    if len(strides) == 2:
        return _dense(x[:, None], kernel[None])[:, 0]
    return _dense(x, kernel)


def input_gradient(
    dy: Float[Array, "b *out o"],
    kernel: Float[Array, "*k i o"],
    strides: tuple[int, ...],
    sides: tuple[int, ...],
) -> Float[Array, "b *vol i"]:
    """The gradient by the input, whose sides are `sides`.

    A convolution with the mirrored kernel, or products spread over the strides.
    """
    if max(strides) == 1:
        mirrored = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
        return forward(dy, mirrored, strides)
    return _planar(
        _strided_input, len(strides), dy, kernel, strides=_three(strides), sides=_three(sides)
    )


def kernel_gradient(
    x: Float[Array, "b *vol i"],
    dy: Float[Array, "b *out o"],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
) -> Float[Array, "*k i o"]:
    """The gradient by the kernel, whose spatial sides are `sizes`."""
    if len(sizes) == 2:
        x, dy = x[:, :, None], dy[:, :, None]
    weights = _strided_kernel if max(strides) > 1 else _dense_kernel
    given = weights(x, dy, _three(sizes), _three(strides))
    return given if len(sizes) == 3 else given[:, 0]


def _three(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Two axes (y, x) as (y, 1, x): slabs then run along y."""
    return sides if len(sides) == 3 else (sides[0], 1, sides[1])


def _planar(f: Callable, axes: int, x: Array, kernel: Array, **arguments: tuple[int, ...]) -> Array:
    """f(x, kernel) for three axes, also where there are two."""
    return (
        f(x, kernel, **arguments)
        if axes == 3
        else f(x[:, :, None], kernel[:, None], **arguments)[:, :, 0]
    )


def _slab(rows: int, row_bytes: int, budget: int) -> int:
    """Rows of a slab: the largest divisor of `rows` whose slab fits the budget (at least 1)."""
    return max(
        n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * row_bytes <= budget)
    )


def _rows(x: Array, start: Array | int, inside: int, low: int, count: int) -> Array:
    """`count` rows of axis 1 from start - low on; rows outside the volume are zero.

    Of these, `inside` rows from `start` on exist; start is a multiple of it, and neither `low` nor
    what remains exceeds it in a loop.
    """
    d, high = x.shape[1], count - low - inside
    if isinstance(start, int):
        return lax.pad(
            x,
            jnp.zeros((), x.dtype),
            [(0, 0, 0), (low, count - low - d, 0)] + [(0, 0, 0)] * (x.ndim - 2),
        )
    parts = [lax.dynamic_slice_in_dim(x, start, inside + min(high, 0), 1)]
    if low:
        below = lax.dynamic_slice_in_dim(x, jnp.maximum(start - low, 0), low, 1)
        parts.insert(0, jnp.where(start > 0, below, 0))
    if high > 0:
        above = lax.dynamic_slice_in_dim(x, jnp.minimum(start + inside, d - high), high, 1)
        parts.append(jnp.where(start + inside < d, above, 0))
    return jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def _walk(
    rows: int, slab: int, part: Callable, shape: tuple[int, ...], dtype: jnp.dtype, scale: int = 1
) -> Array:
    """Joins part(start) for start = 0, slab, ... along axis 1; a row becomes `scale` rows."""
    if slab == rows:
        return part(0)

    def body(k: Array, y: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(y, part(k * slab), k * slab * scale, 1)

    return lax.fori_loop(0, rows // slab, body, lax.empty(shape, dtype))


def _sum(rows: int, slab: int, part: Callable, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Adds up part(start) for start = 0, slab, ..."""
    if slab == rows:
        return part(0)
    return lax.fori_loop(0, rows // slab, lambda k, y: y + part(k * slab), jnp.zeros(shape, dtype))


def _conv2(x: Array, kernel: Array, padding: tuple, dilation: tuple[int, int]) -> Array:
    """The fast form: (n, h, w, i) by (kh, kw, i, o), stride 1, no groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _dense(x: Array, kernel: Array) -> Array:
    """Stride 1: per slab, 2D convolutions over (z, y and x flattened), one for each tap along x.

    At the ends of a row such a tap reads the neighbouring row; those results are left out of the
    sum.
    """
    (b, d, h, w, i), (kz, ky, kx, _, o) = x.shape, kernel.shape
    slab = _slab(d, 4 * b * h * w * max(i, o), SLAB)
    slab = slab if slab >= kz // 2 else d
    reach = ky // 2 * w

    def part(z: Array | int) -> Array:
        s = _rows(x, z, slab, kz // 2, slab + 2 * (kz // 2))
        if i in FEW:
            s = jnp.pad(s, ((0, 0),) * 3 + ((kx // 2, kx // 2), (0, 0)))
            s = jnp.concatenate([s[:, :, :, e : e + w] for e in range(kx)], -1).reshape(
                b, -1, h * w, kx * i
            )
            return _conv2(
                s, kernel.reshape(kz, ky, kx * i, o), ((0, 0), (reach, reach)), (1, w)
            ).reshape(b, slab, h, w, o)
        s = s.reshape(b, -1, h * w, i)

        def tap(e: int) -> Array:
            shift = e - kx // 2
            y = _conv2(
                s, kernel[:, :, e], ((0, 0), (reach - shift, reach + shift)), (1, w)
            ).reshape(b, slab, h, w, o)
            column = np.arange(w)[:, None] + shift
            return jnp.where((column >= 0) & (column < w), y, 0) if shift else y

        return sum((tap(e) for e in range(kx) if e != kx // 2), tap(kx // 2))

    return _walk(d, slab, part, (b, d, h, w, o), x.dtype)


def _dense_kernel(x: Array, dy: Array, sizes: tuple[int, ...], _: tuple[int, ...]) -> Array:
    """Stride 1: per slab, one 2D convolution over (z, y and i flattened) with channels (b, x).

    Its kernel is dy, tripled along x. The stencils along z and y yield the taps along z and, since
    y is dilated by i, (tap along y, i) at once.
    """
    (b, d, h, w, i), o, (kz, ky, kx) = x.shape, dy.shape[-1], sizes
    slab = _slab(d, 4 * b * h * w * max(i, kx * o), SLAB)
    slab = slab if slab >= kz // 2 else d
    extra = int(ky == 1)  # without any padding this convolution is slow; the extra row is dropped

    def part(z: Array | int) -> Array:
        s = _rows(x, z, slab, kz // 2, slab + 2 * (kz // 2)).transpose(1, 2, 4, 0, 3)
        g = _rows(dy, z, slab, 0, slab)
        g = jnp.pad(g, ((0, 0),) * 3 + ((kx // 2, kx // 2), (0, 0)))
        g = jnp.concatenate(
            [g[:, :, :, kx - 1 - e : kx - 1 - e + w] for e in range(kx)], -1
        ).transpose(1, 2, 0, 3, 4)
        reach = ky // 2 * i
        y = _conv2(
            s.reshape(1, -1, h * i, b * w),
            g.reshape(slab, h, b * w, kx * o),
            ((0, extra), (reach, reach)),
            (1, i),
        )
        return y[0, :kz].reshape(kz, ky, i, kx, o)

    return _sum(d, slab, part, (kz, ky, i, kx, o), x.dtype).swapaxes(2, 3)


def _columns(
    x: Array, z: Array | int, slab: int, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> Array:
    """What the kernel sees of x for output rows z .. z + slab: (b, slab, y, x, taps * i)."""
    out = [-(-n // s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
    count = [s * (n - 1) + k for n, s, k in zip([slab, *out[1:]], strides, sizes, strict=True)]
    s = _rows(x, z * strides[0], strides[0] * slab, sizes[0] // 2, count[0])
    edges = [
        (k // 2, c - k // 2 - n, 0)
        for k, c, n in zip(sizes[1:], count[1:], x.shape[2:-1], strict=True)
    ]
    s = lax.pad(s, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges, (0, 0, 0)])
    taps = [
        s[
            (
                slice(None),
                *(
                    slice(t, t + n * step, step)
                    for t, n, step in zip(tap, [slab, *out[1:]], strides, strict=True)
                ),
            )
        ]
        for tap in itertools.product(*map(range, sizes))
    ]
    return jnp.concatenate(taps, -1)


def _strided_slab(
    x: Array, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[list[int], int]:
    """Sides of the output and rows of a slab, for what needs the columns."""
    out = [-(-n // s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
    slab = _slab(out[0], 4 * x.shape[0] * out[1] * out[2] * math.prod(sizes) * x.shape[-1], COLUMNS)
    return out, slab if x.shape[1] % strides[0] == 0 and slab * strides[0] >= sizes[
        0
    ] // 2 else out[0]


def _strided(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """Any stride: per slab, columns by kernel."""
    b, sizes, o = x.shape[0], kernel.shape[:3], kernel.shape[-1]
    out, slab = _strided_slab(x, sizes, strides)
    flat = kernel.reshape(-1, o)

    def part(z: Array | int) -> Array:
        return (_columns(x, z, slab, sizes, strides).reshape(-1, len(flat)) @ flat).reshape(
            b, slab, *out[1:], o
        )

    return _walk(out[0], slab, part, (b, *out, o), x.dtype)


def _strided_kernel(x: Array, dy: Array, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Any stride: per slab, columns (transposed) by dy."""
    i, o = x.shape[-1], dy.shape[-1]
    out, slab = _strided_slab(x, sizes, strides)
    taps = math.prod(sizes) * i

    def part(z: Array | int) -> Array:
        columns, g = _columns(x, z, slab, sizes, strides), _rows(dy, z, slab, 0, slab)
        return lax.dot_general(
            columns.reshape(-1, taps), g.reshape(-1, o), (((0,), (0,)), ((), ()))
        )

    return _sum(out[0], slab, part, (taps, o), x.dtype).reshape(*sizes, i, o)


def _strided_input(
    dy: Array, kernel: Array, strides: tuple[int, ...], sides: tuple[int, ...]
) -> Array:
    """Any stride: per slab, dy by the transposed kernel gives every voxel's share of each tap.

    Each phase of the stride adds its taps.
    """
    (b, *out, o), (*sizes, i, _) = dy.shape, kernel.shape
    phases = [_phases(k, s) for k, s in zip(sizes, strides, strict=True)]
    low = [max(-q for taps in axis for _, q in taps) for axis in phases]
    high = [max(q for taps in axis for _, q in taps) for axis in phases]
    low, high = [max(n, 0) for n in low], [max(n, 0) for n in high]
    flat = jnp.moveaxis(kernel, -1, 0).reshape(o, -1)
    slab = _slab(out[0], 4 * b * (out[1] + 1) * (out[2] + 1) * flat.shape[1], SPREAD)
    slab = slab if sides[0] % strides[0] == 0 and slab >= max(low[0], high[0]) else out[0]
    size = [slab, *out[1:]]

    def part(z: Array | int) -> Array:
        s = _rows(dy, z, slab, low[0], low[0] + slab + high[0])
        s = jnp.pad(s, ((0, 0), (0, 0), (low[1], high[1]), (low[2], high[2]), (0, 0)))
        shares = (s.reshape(-1, o) @ flat).reshape(*s.shape[:-1], *sizes, i)

        def tap(*chosen: tuple[int, int]) -> Array:
            box = [slice(n + q, n + q + m) for (_, q), n, m in zip(chosen, low, size, strict=True)]
            return shares[(slice(None), *box, *(a for a, _ in chosen))]

        zero = jnp.zeros((b, *size, i), dy.dtype)
        blocks = [
            sum((tap(*chosen) for chosen in itertools.product(*phase)), zero)
            for phase in itertools.product(*phases)
        ]
        y = jnp.stack(blocks, 4).reshape(b, *size, *strides, i).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        y = y.reshape(b, *(n * s for n, s in zip(size, strides, strict=True)), i)
        return y[:, :, : sides[1], : sides[2]]

    rows = out[0] * strides[0]
    return _walk(out[0], slab, part, (b, rows, *sides[1:], i), dy.dtype, strides[0])[:, : sides[0]]


def _phases(size: int, stride: int) -> list[list[tuple[int, int]]]:
    """For each phase p of the input, the taps a that reach it and the shift q of dy.

    input[stride * t + p] gets dy[t + q] by tap a.
    """
    r = size // 2
    return [
        [(a, (p + r - a) // stride) for a in range(size) if (p + r - a) % stride == 0]
        for p in range(stride)
    ]
