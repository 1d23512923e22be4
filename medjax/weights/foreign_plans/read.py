"""nnU-Net v1's `plans.pkl` -> a `Plan`.

The file is read by `weights/formats/torch_file.py`, under whose allow-list nothing in it can run.
"""

from collections.abc import Sequence
from pathlib import Path

from medjax.errors import ModelError, UsageError
from medjax.prepare.plan import Plan
from medjax.weights.foreign_plans.convert import from_v1, read_plans, understood
from medjax.weights.formats.torch_file import read_plain

NEEDED = {
    "plans_per_stage",
    "modalities",
    "normalization_schemes",
    "use_mask_for_norm",
    "base_num_features",
}


def read_any_plan(path: str | Path, channels: Sequence[str] | None = None) -> Plan:
    """A plan of medjax, of nnU-Net v2 (JSON) or of v1 (.pkl).

    `channels` names the channels of a v2 plan without a dataset.json beside it.
    """
    return read_plans_v1(path) if Path(path).suffix == ".pkl" else read_plans(path, channels)


def read_plans_v1(path: str | Path) -> Plan:
    """The plan in a v1 `plans.pkl`.

    Raises: `UsageError` for a file that holds anything but numbers, names, lists and arrays, that
      is damaged, or that is not a plan.
    """
    path = Path(path)
    try:
        fields = read_plain(path)
    except (ModelError, OSError) as error:
        raise UsageError(
            f"cannot be read as an nnU-Net v1 plan: {getattr(error, 'message', error)}",
            path=path,
            found=getattr(error, "found", None),
            fix="obtain it from a source you trust",
        ) from error
    if not isinstance(fields, dict) or not NEEDED <= set(fields):
        missing = (
            sorted(NEEDED - set(fields)) if isinstance(fields, dict) else type(fields).__name__
        )
        raise UsageError(
            "not an nnU-Net v1 plan",
            path=path,
            found=f"without {missing}",
            expected=", ".join(sorted(NEEDED)),
        )
    return understood(lambda: from_v1(fields, str(path)), path)
