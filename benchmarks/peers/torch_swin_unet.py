"""Swin-Unet and M4oE in plain PyTorch, the peer of `medjax.models.swin_unet` in parity tests and
timings.

Written from the papers' description (Swin, arXiv 2103.14030; Swin-Unet, arXiv 2105.05537; M4oE,
MICCAI 2024) with the parameter names of the public checkpoints. `mlp` of a side: "dense", "gate" (a
weight per expert), "channel_gate" (M4oE's released gate), "hard" (by modality).
"""

import torch
from torch import nn
from torch.nn import functional as F

SHIFTED = -100.0


def windows(x, w):
    """(b, h, w, c) -> (b * windows, w * w, c)."""
    b, height, width, c = x.shape
    return (
        x.view(b, height // w, w, width // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
    )


def unwindows(x, w, height, width):
    """The inverse of `windows`."""
    return (
        x.view(-1, height // w, width // w, w, w, x.shape[-1])
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(-1, height, width, x.shape[-1])
    )


class Attention(nn.Module):
    """Window attention with relative position bias."""

    def __init__(self, dim, window, heads, table_window):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * table_window - 1) ** 2, heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        grid = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        d = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", d[..., 0] * (2 * window - 1) + d[..., 1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask):
        """(windows, n, c); mask (windows of one image, n, n) or None."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = (
            self.relative_position_bias_table[self.relative_position_index.flatten()]
            .view(n, n, -1)
            .permute(2, 0, 1)
        )
        scores = q * self.scale @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = (scores.view(-1, len(mask), self.heads, n, n) + mask[None, :, None]).view(
                b, self.heads, n, n
            )
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Dense(nn.Module):
    """The MLP of a block."""

    def __init__(self, dim, experts):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x, modality):
        return self.fc2(F.gelu(self.fc1(x)))


class Experts(nn.Module):
    """Expert MLPs in a list, as released."""

    def __init__(self, dim, experts, gate=0):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in range(experts)
        )
        if gate:
            self.gating_network = nn.Linear(dim, gate)

    def forward(self, x, modality):
        weights = self.gating_network(x).softmax(-1)
        return sum(weights[..., e, None] * expert(x) for e, expert in enumerate(self.experts))


class ChannelGated(Experts):
    """The released gate: a softmax over the channels, shared by the experts."""

    def forward(self, x, modality):
        weights = self.gating_network(x).softmax(-1)
        return sum(weights * expert(x) for expert in self.experts)


class Hard(Experts):
    """Every sample through the expert of its modality."""

    def forward(self, x, modality):
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = (modality == e).nonzero()[:, 0]
            if len(rows):
                y = y.index_copy(0, rows, expert(x.index_select(0, rows)).to(y.dtype))
        return y


MLPS = {
    "dense": Dense,
    "gate": lambda dim, experts: Experts(dim, experts, experts),
    "channel_gate": lambda dim, experts: ChannelGated(dim, experts, dim),
    "hard": Hard,
}


class Block(nn.Module):
    """A Swin block on a square grid."""

    def __init__(self, dim, grid, heads, window, shift, mlp, experts, drop, epsilon, keep_shift):
        super().__init__()
        self.grid, self.table_window, self.drop = grid, window, drop
        if grid <= window:
            window, shift = grid, (min(shift, window // 2) if keep_shift else 0)
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim, epsilon), nn.LayerNorm(dim, epsilon)
        self.attn = Attention(dim, window, heads, window)
        self.mlp = MLPS[mlp](dim, experts)
        if shift:
            region, number = torch.zeros(1, grid, grid, 1), 0
            cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for rows in cuts:
                for columns in cuts:
                    region[:, rows, columns] = number
                    number += 1
            flat = windows(region, window)[..., 0]
            self.register_buffer("attn_mask", (flat[:, None] != flat[:, :, None]).float() * SHIFTED)
        else:
            self.attn_mask = None

    def branch(self, y):
        """Stochastic depth, per sample."""
        if not self.training or not self.drop:
            return y
        keep = torch.rand(len(y), *(1,) * (y.ndim - 1), device=y.device) >= self.drop
        return y * keep / (1 - self.drop)

    def forward(self, x, modality):
        y = self.norm1(x)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        y = unwindows(
            self.attn(windows(y, self.window), self.attn_mask), self.window, self.grid, self.grid
        )
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + self.branch(y)
        return x + self.branch(self.mlp(self.norm2(x), modality))


class Merging(nn.Module):
    """Half the grid, twice the channels."""

    def __init__(self, dim, epsilon):
        super().__init__()
        self.norm, self.reduction = (
            nn.LayerNorm(4 * dim, epsilon),
            nn.Linear(4 * dim, 2 * dim, bias=False),
        )

    def forward(self, x):
        return self.reduction(
            self.norm(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))
        )


class Expanding(nn.Module):
    """A finer grid: `times` as fine, `out` channels."""

    def __init__(self, dim, out, times, epsilon):
        super().__init__()
        self.times, self.expand, self.norm = (
            times,
            nn.Linear(dim, out * times**2, bias=False),
            nn.LayerNorm(out, epsilon),
        )

    def forward(self, x):
        b, height, width, _ = x.shape
        p = self.times
        y = (
            self.expand(x)
            .view(b, height, width, p, p, -1)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, height * p, width * p, -1)
        )
        return self.norm(y)


class Stage(nn.Module):
    """Blocks, then a merging (`downsample`) or an expanding (`upsample`)."""

    def __init__(self, blocks, downsample=None, upsample=None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample:
            self.downsample = downsample
        if upsample:
            self.upsample = upsample

    def forward(self, x, modality):
        for block in self.blocks:
            x = block(x, modality)
        return x


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm."""

    def __init__(self, dim, patch, epsilon):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, patch, patch), nn.LayerNorm(dim, epsilon)

    def forward(self, image):
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class SwinUnet(nn.Module):
    """The network; `heads_out`: class counts with background, one bias-free 1x1 head each.

    Images (b, 1 or 3, side, side).
    """

    def __init__(
        self,
        heads_out,
        side=224,
        width=96,
        depths=(2, 2, 2, 2),
        heads=(3, 6, 12, 24),
        window=7,
        patch=4,
        encoder="dense",
        decoder="dense",
        experts=3,
        drop_path=0.2,
        epsilon=1e-5,
        keep_shift=False,
    ):
        super().__init__()
        grid, stages = side // patch, len(depths)
        rates = torch.linspace(0, drop_path, sum(depths)).split(list(depths))

        def blocks(s, mlp):
            options = {"mlp": mlp, "experts": experts, "epsilon": epsilon, "keep_shift": keep_shift}
            return [
                Block(
                    width * 2**s,
                    grid // 2**s,
                    heads[s],
                    window,
                    i % 2 * (window // 2),
                    drop=float(r),
                    **options,
                )
                for i, r in enumerate(rates[s])
            ]

        self.patch_embed = PatchEmbed(width, patch, epsilon)
        self.layers = nn.ModuleList(
            Stage(blocks(s, encoder), Merging(width * 2**s, epsilon) if s + 1 < stages else None)
            for s in range(stages)
        )
        self.norm = nn.LayerNorm(width * 2 ** (stages - 1), epsilon)
        self.layers_up = nn.ModuleList(
            [Expanding(width * 2 ** (stages - 1), width * 2 ** (stages - 2), 2, epsilon)]
        )
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for s in reversed(range(stages - 1)):
            dim = width * 2**s
            self.layers_up.append(
                Stage(
                    blocks(s, decoder), upsample=Expanding(dim, dim // 2, 2, epsilon) if s else None
                )
            )
            self.concat_back_dim.append(nn.Linear(2 * dim, dim))
        self.norm_up = nn.LayerNorm(width, epsilon)
        self.up = Expanding(width, width, patch, epsilon)
        self.outputs = nn.ModuleList(nn.Conv2d(width, n, 1, bias=False) for n in heads_out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, image, modality):
        """(tokens entering each stage, tokens leaving the last)."""
        x, entering = self.patch_embed(image.expand(-1, 3, -1, -1)), []
        for stage in self.layers:
            entering.append(x)
            x = stage(x, modality)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
        return entering, x

    def features(self, image, modality):
        """The map before the heads, (b, side, side, width)."""
        entering, x = self.encode(image, modality)
        x = self.layers_up[0](self.norm(x))
        for k, stage in list(enumerate(self.layers_up))[1:]:
            x = self.concat_back_dim[k](torch.cat([x, entering[len(self.layers_up) - 1 - k]], -1))
            x = stage(x, modality)
            if hasattr(stage, "upsample"):
                x = stage.upsample(x)
        return self.up(self.norm_up(x))

    def forward(self, image, modality, head):
        """A list with every sample's logits (n_head, side, side)."""
        x = self.features(image, modality).permute(0, 3, 1, 2)
        return [self.outputs[int(h)](x[i : i + 1])[0] for i, h in enumerate(head)]
