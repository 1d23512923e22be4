"""The losses of the compared training steps in plain PyTorch: nnU-Net's sum over resolutions, and
M4oE's per slice.
"""

import torch
from torch.nn import functional as F

from medjax.losses.parts import deep


def supervised(outputs, label, classes):
    """Sigmoid cross-entropy and soft Dice at every resolution, with nnU-Net's weights.

    Args:
      outputs: logits (b, classes, z, y, x), finest first. label: (b, z, y, x) ids, 0 is none.
    """
    total = 0.0
    ids = torch.arange(1, classes + 1, device=label.device)[None, :, None, None, None]
    for weight, logits in zip(deep.weights(len(outputs)), outputs, strict=True):
        if not weight:
            continue
        logits = logits.float()
        z, y, x = (n // k for n, k in zip(label.shape[1:], logits.shape[2:], strict=True))
        small = label[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]
        target = (small[:, None] == ids).float()
        p, axes = torch.sigmoid(logits), (0, 2, 3, 4)
        overlap, volume = (p * target).sum(axes), p.sum(axes) + target.sum(axes)
        entropy = F.binary_cross_entropy_with_logits(logits, target) * classes
        total = total + weight * (entropy - (2 * overlap / volume.clamp(min=1e-7)).sum())
    return total


def slices(outputs, label):
    """0.4 cross-entropy + 0.6 squared Dice, the mean over slices.

    Args:
      outputs: per slice (classes of its head, y, x). label: (b, y, x).
    """
    total = 0.0
    for logits, y in zip(outputs, label, strict=True):
        x = logits.float()
        p, hot = x.softmax(0), F.one_hot(y, len(x)).permute(2, 0, 1).float()
        overlap, volume = (p * hot).sum((1, 2)), (p * p).sum((1, 2)) + hot.sum((1, 2))
        dice = 1 - ((2 * overlap + 1e-5) / (volume + 1e-5)).mean()
        total = total + 0.4 * F.cross_entropy(x[None], y[None]) + 0.6 * dice
    return total / len(outputs)
