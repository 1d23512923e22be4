"""Low-rank adapters in files of PyTorch's PEFT: taken out of the tensors, and as leaves of ours.

In: named tensors such as those that SegVol's adaptation (SegEVOLution) wrote, where adapted layers
are called `base_layer` and stand beside `lora_A.default` (r, in) and `lora_B.default` (out, r).
Out: the tensors of the network that was adapted, under its own names, and the pairs.
"""

import re
from collections.abc import Mapping

import numpy as np

from medjax.errors import ModelError
from medjax.weights.accounts import Tensors
from medjax.weights.adapters import A, B

WRAPPED = r"\.?base_model\.model\."
PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
Pair = tuple[np.ndarray, np.ndarray]


def split(tensors: Tensors, prefix: str = "_model.") -> tuple[dict[str, np.ndarray], dict]:
    """(tensors of the network, owner's name -> (A (r, in), B (out, r))).

    Tensors without adapters come back as they are, without pairs.

    Args:
      prefix: of all names, of the program that wrote the file.

    Raises: `ModelError` for half a pair, and for several adapters beside one layer.
    """
    if not any(".lora_" in name for name in tensors):
        return dict(tensors), {}
    base: dict[str, np.ndarray] = {}
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        plain = re.sub(WRAPPED, ".", name.removeprefix(prefix))
        found = PAIR.fullmatch(plain)
        if found is None:
            base[plain.replace(".base_layer.", ".")] = value
        elif found[2] in halves.setdefault(found[1], {}):
            raise ModelError("several adapters beside one layer", found=name, expected="one")
        else:
            halves[found[1]][found[2]] = value
    for owner, pair in halves.items():
        a, b = pair.get("A"), pair.get("B")
        weight = base.get(f"{owner}.weight")
        fits = a is not None and b is not None and weight is not None
        if not fits or a.shape != (len(a), weight.shape[1]) or b.shape != (len(weight), len(a)):
            shapes = {k: tuple(v.shape) for k, v in pair.items()}
            raise ModelError(
                f"the adapter of {owner} does not fit its layer",
                found=shapes,
                expected="A (r, in) and B (out, r) beside a weight (out, in)",
            )
    return base, {owner: (pair["A"], pair["B"]) for owner, pair in halves.items()}


def leaves(
    pairs: Mapping[str, Pair], names: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, np.ndarray], int]:
    """(path -> array of our adapters, their rank) of pairs beside layers of a network.

    Args:
      pairs: by the layer's name. names: tensor name -> (path of our leaf, layout).

    Raises: `ModelError` for layers that the network does not have, that are no linear maps, and for
      several ranks.
    """
    ranks = sorted({len(a) for a, _ in pairs.values()})
    if len(ranks) != 1:
        raise ModelError("adapters of several ranks", found=ranks, expected="one rank")
    found = {}
    for owner, (a, b) in pairs.items():
        path, layout = names.get(f"{owner}.weight", ("", ""))
        if layout != "linear":
            raise ModelError(
                "an adapter beside a layer that the network does not have, or that is not linear",
                found=owner,
            )
        home = path.removesuffix("kernel")
        found[home + A] = np.ascontiguousarray(a.T[None], np.float32)
        found[home + B] = np.ascontiguousarray(b.T[None], np.float32)
    return found, ranks[0]
