"""MONAI's metrics of a pair of label maps, as `benchmarks.metrics` asks for them."""

import numpy as np


def scores(reference, prediction, classes, spacing_mm, tolerance_mm):
    """() -> class -> Dice, NSD, HD95, ASSD of two label maps (z, y, x) by MONAI."""
    import torch
    from monai import metrics

    def run():
        found = {}
        for c in range(1, classes + 1):
            a, b = (
                torch.as_tensor(np.stack([m != c, m == c])[None]) for m in (reference, prediction)
            )
            surface = {"spacing": spacing_mm}
            found[str(c)] = {
                "Dice": float(metrics.compute_dice(b, a, include_background=False)[0, 0]),
                "NSD": float(
                    metrics.compute_surface_dice(
                        b, a, [tolerance_mm], use_subvoxels=True, **surface
                    )[0, 0]
                ),
                "HD95": float(
                    metrics.compute_hausdorff_distance(b, a, percentile=95, **surface)[0, 0]
                ),
                "ASSD": float(
                    metrics.compute_average_surface_distance(b, a, symmetric=True, **surface)[0, 0]
                ),
            }
        return found

    return run
