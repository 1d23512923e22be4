"""The peers of benchmarks/networks.py in plain PyTorch, written from the published descriptions:
U-Net, residual-encoder U-Net (nnU-Net), STU-Net / TSFM, SwinUNETR. Each takes (b, m, z, y, x) and
gives a list of logits, finest first. No package beyond torch.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def norm(width, affine=True):
    return nn.InstanceNorm3d(width, eps=1e-5, affine=affine)


def conv(i, o, kernel, stride=1, bias=True):
    kernel = (kernel,) * 3 if isinstance(kernel, int) else tuple(kernel)
    return nn.Conv3d(i, o, kernel, stride, [k // 2 for k in kernel], bias=bias)


def act(x):
    return F.leaky_relu(x, 0.01)


class ConvNormAct(nn.Module):
    def __init__(self, i, o, kernel, stride=1, bias=True):
        super().__init__()
        self.conv, self.norm = conv(i, o, kernel, stride, bias), norm(o)

    def forward(self, x):
        return act(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """nnU-Net's, with the shortcut of its v1 fork: a strided 1x1x1 convolution with norm where grid
    or width change.
    """

    def __init__(self, i, o, kernel, stride, bias):
        super().__init__()
        self.conv1, self.norm1 = conv(i, o, kernel, stride, bias), norm(o)
        self.conv2, self.norm2 = conv(o, o, kernel, 1, bias), norm(o)
        same = i == o and max(stride) == 1
        self.skip = nn.Identity() if same else nn.Sequential(conv(i, o, 1, stride, False), norm(o))

    def forward(self, x):
        y = self.norm2(self.conv2(act(self.norm1(self.conv1(x)))))
        return act(y + self.skip(x))


class UNet(nn.Module):
    """Plain (`blocks` None) or with a residual encoder; transposed convolutions with kernel =
    stride, a head at every level.
    """

    def __init__(
        self,
        classes,
        features,
        strides,
        kernels,
        blocks=None,
        stem_kernel=None,
        conv_bias=True,
        up_bias=False,
        head_bias=True,
    ):
        super().__init__()
        self.encoder, i = nn.ModuleList(), 1
        if blocks:
            self.stem, i = ConvNormAct(1, features[0], stem_kernel, 1, conv_bias), features[0]
        for s, (width, stride, kernel) in enumerate(zip(features, strides, kernels, strict=True)):
            if blocks:
                stage = [ResidualBlock(i, width, kernel, stride, conv_bias)]
                stage += [
                    ResidualBlock(width, width, kernel, (1, 1, 1), conv_bias)
                    for _ in range(blocks[s] - 1)
                ]
            else:
                stage = [
                    ConvNormAct(i, width, kernel, stride, conv_bias),
                    ConvNormAct(width, width, kernel, 1, conv_bias),
                ]
            self.encoder.append(nn.Sequential(*stage))
            i = width
        levels = range(len(features) - 1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(
                features[s + 1], features[s], strides[s + 1], strides[s + 1], bias=up_bias
            )
            for s in levels
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(2 * features[s], features[s], kernels[s], 1, conv_bias),
                *(
                    []
                    if blocks
                    else [ConvNormAct(features[s], features[s], kernels[s], 1, conv_bias)]
                ),
            )
            for s in levels
        )
        self.heads = nn.ModuleList(conv(features[s], classes, 1, bias=head_bias) for s in levels)

    def forward(self, x):
        x, skips, out = self.stem(x) if hasattr(self, "stem") else x, [], []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for s in reversed(range(len(self.ups))):
            x = self.decoder[s](torch.cat([self.ups[s](x), skips[s]], 1))
            out.insert(0, self.heads[s](x))
        return out


class TrunkBlock(nn.Module):
    """STU-Net's block ("post") or its pre-activation form; names as in STU-Net's files."""

    def __init__(self, i, o, stride, project, order):
        super().__init__()
        self.pre = order == "pre"
        self.conv1, self.norm1 = conv(i, o, 3, stride), norm(i if self.pre else o)
        self.conv2, self.norm2 = conv(o, o, 3), norm(o)
        if project:
            self.conv3 = conv(i, o, 1, stride)

    def forward(self, x):
        short = self.conv3(x) if hasattr(self, "conv3") else x
        if self.pre:
            return self.conv2(act(self.norm2(self.conv1(act(self.norm1(x)))))) + short
        return act(self.norm2(self.conv2(act(self.norm1(self.conv1(x))))) + short)


class UpLayer(nn.Module):
    """1x1x1 convolution, then nearest neighbour: they commute, this order needs less memory."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.conv, self.stride = conv(i, o, 1), tuple(float(s) for s in stride)

    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=self.stride, mode="nearest")


class VitLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.ln1(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


class Bottleneck(nn.Module):
    def __init__(self, channels, width, layers, heads, kernels, grid):
        super().__init__()
        self.in_proj, self.out_proj = (
            conv(channels, width, kernels[0]),
            conv(width, channels, kernels[1]),
        )
        self.pos = nn.Parameter(torch.zeros(1, math.prod(grid), width))
        self.layers, self.ln_f = (
            nn.ModuleList(VitLayer(width, heads) for _ in range(layers)),
            nn.LayerNorm(width, 1e-6),
        )

    def forward(self, x):
        y = self.in_proj(x)
        tokens = y.flatten(2).transpose(1, 2) + self.pos
        for layer in self.layers:
            tokens = layer(tokens)
        return self.out_proj(self.ln_f(tokens).transpose(1, 2).unflatten(2, y.shape[2:]))


class Trunk(nn.Module):
    """STU-Net (`order="post"`, no transformer) and TSFM (`order="pre"`, stem, final norms,
    transformer). `save`: blocks are recomputed.
    """

    def __init__(
        self, classes, channels, strides, blocks, order="post", vit=None, grid=None, save=False
    ):
        super().__init__()
        pre, last = order == "pre", len(channels) - 1
        self.save = save

        def stage(i, o, stride, project):
            first = TrunkBlock(i, o, stride, project, order)
            return nn.Sequential(
                first, *(TrunkBlock(o, o, 1, False, order) for _ in range(blocks - 1))
            )

        self.stem = (
            nn.Sequential(conv(1, channels[0], 3), norm(channels[0]), nn.LeakyReLU(0.01))
            if pre
            else nn.Identity()
        )
        self.conv_blocks_context = nn.ModuleList(
            [stage(channels[0] if pre else 1, channels[0], 1, not pre)]
        )
        self.conv_blocks_context.extend(
            stage(channels[s], channels[s + 1], strides[s], True) for s in range(last)
        )
        order_up = list(reversed(range(last)))
        self.upsample_layers = nn.ModuleList(
            UpLayer(channels[s + 1], channels[s], strides[s]) for s in order_up
        )
        self.conv_blocks_localization = nn.ModuleList(
            stage(2 * channels[s], channels[s], 1, True) for s in order_up
        )
        self.seg_outputs = nn.ModuleList(conv(channels[s], classes, 1) for s in order_up)
        self.head_norms = nn.ModuleList(norm(channels[s]) for s in order_up) if pre else None
        self.vit = Bottleneck(channels[-1], *vit, grid) if vit else None
        self.bott_norm = norm(channels[-1]) if vit and pre else None

    def _blocks(self, stage, x):
        for block in stage:
            x = (
                checkpoint(block, x, use_reentrant=False)
                if self.save and self.training
                else block(x)
            )
        return x

    def forward(self, x):
        x, skips, out = self.stem(x), [], []
        for stage in self.conv_blocks_context:
            x = self._blocks(stage, x)
            skips.append(x)
        if self.vit is not None:
            x = self.vit(act(self.bott_norm(x)) if self.bott_norm is not None else x)
        for u, up in enumerate(self.upsample_layers):
            x = self._blocks(self.conv_blocks_localization[u], torch.cat([up(x), skips[-2 - u]], 1))
            out.insert(
                0,
                self.seg_outputs[u](
                    act(self.head_norms[u](x)) if self.head_norms is not None else x
                ),
            )
        return out


class SwinBlock(nn.Module):
    """Shifted-window attention in three axes, window 7 or the whole axis where it is shorter."""

    def __init__(self, width, heads, grid, shifted):
        super().__init__()
        self.heads, self.grid = heads, grid
        self.window = tuple(min(7, g) for g in grid)
        self.shift = tuple(3 if shifted and g > 7 else 0 for g in grid)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.table = nn.Parameter(torch.randn(13**3, heads) * 0.02)
        axes = [torch.arange(w) for w in self.window]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        index = ((at[:, None] - at[None] + 6) * torch.tensor([169, 13, 1])).sum(-1)
        self.register_buffer("index", index, persistent=False)
        self.padded = tuple(-(-g // w) * w for g, w in zip(grid, self.window, strict=True))
        number = torch.zeros(self.padded, dtype=torch.long)
        for axis, (p, w, s) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            line = torch.zeros(p, dtype=torch.long)
            if s:
                line[p - w : p - s], line[p - s :] = 1, 2
            number = number * 3 + line.reshape([-1 if a == axis else 1 for a in range(3)])
        region = self._cut(number[None, ..., None])[..., 0]
        mask = (
            (region[:, :, None] != region[:, None, :]).float() * -100.0 if any(self.shift) else None
        )
        self.register_buffer("mask", mask, persistent=False)

    def _cut(self, x):
        b, c, (p, w) = x.shape[0], x.shape[-1], (self.padded, self.window)
        x = x.reshape(b, p[0] // w[0], w[0], p[1] // w[1], w[1], p[2] // w[2], w[2], c)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, math.prod(w), c)

    def _join(self, x, b):
        p, w = self.padded, self.window
        x = x.reshape(b, p[0] // w[0], p[1] // w[1], p[2] // w[2], *w, -1)
        return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, *p, -1)

    def forward(self, x):
        b, g = x.shape[0], self.grid
        y = self.norm1(x)
        y = F.pad(
            y,
            (
                0,
                0,
                *(
                    v
                    for p, n in zip(reversed(self.padded), reversed(g), strict=True)
                    for v in (0, p - n)
                ),
            ),
        )
        y = torch.roll(y, [-s for s in self.shift], (1, 2, 3)) if any(self.shift) else y
        tokens = self._cut(y)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].permute(2, 0, 1)[None]
        if self.mask is not None:
            bias = (bias + self.mask[:, None]).repeat(b, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)).transpose(1, 2).flatten(2)
        y = self._join(self.proj(y), b)
        y = torch.roll(y, self.shift, (1, 2, 3)) if any(self.shift) else y
        x = x + y[:, : g[0], : g[1], : g[2]]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class UnetrBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv1, self.conv2 = conv(i, o, 3, bias=False), conv(o, o, 3, bias=False)
        self.conv3 = conv(i, o, 1, bias=False) if i != o else None

    def forward(self, x):
        y = F.instance_norm(self.conv2(act(F.instance_norm(self.conv1(x)))))
        return act(y + (x if self.conv3 is None else F.instance_norm(self.conv3(x))))


class SwinUNETR(nn.Module):
    """`save`: Swin blocks are recomputed in the backward pass."""

    ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))

    def __init__(self, classes, patch, f=48, heads=(3, 6, 12, 24), save=False):
        super().__init__()
        self.save, self.embed = save, nn.Conv3d(1, f, 2, 2)
        self.stages, self.merges, self.merge_norms = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        for s, h in enumerate(heads):
            grid, width = tuple(n // 2 ** (s + 1) for n in patch), f * 2**s
            self.stages.append(
                nn.ModuleList(SwinBlock(width, h, grid, shifted) for shifted in (False, True))
            )
            self.merge_norms.append(nn.LayerNorm(8 * width))
            self.merges.append(nn.Linear(8 * width, 2 * width, bias=False))
        self.skips = nn.ModuleList(
            UnetrBlock(i, o)
            for i, o in ((1, f), (f, f), (2 * f, 2 * f), (4 * f, 4 * f), (16 * f, 16 * f))
        )
        widths = [f, f, 2 * f, 4 * f, 8 * f, 16 * f]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(widths[k + 1], widths[k], 2, 2, bias=False) for k in range(5)
        )
        self.blocks = nn.ModuleList(UnetrBlock(2 * widths[k], widths[k]) for k in range(5))
        self.out = conv(f, classes, 1)

    def forward(self, image):
        x = self.embed(image).permute(0, 2, 3, 4, 1)
        maps = [x]
        for blocks, merge, merge_norm in zip(
            self.stages, self.merges, self.merge_norms, strict=True
        ):
            for block in blocks:
                x = (
                    checkpoint(block, x, use_reentrant=False)
                    if self.save and self.training
                    else block(x)
                )
            x = torch.cat([x[:, a::2, b::2, c::2] for a, b, c in self.ORDER], -1)
            x = merge(merge_norm(x))
            maps.append(x)
        maps = [F.layer_norm(m, m.shape[-1:]).permute(0, 4, 1, 2, 3) for m in maps]
        enc = [self.skips[0](image), *(self.skips[k + 1](maps[k]) for k in range(3)), maps[3]]
        y = self.skips[4](maps[4])
        for k in reversed(range(5)):
            y = self.blocks[k](torch.cat([self.ups[k](y), enc[k]], 1))
        return [self.out(y)]
