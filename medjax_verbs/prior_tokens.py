"""What the tokens of tasks mean that a network with context priors has learned (row C10 of the
document on SegVol's adaptation): analogies, nearest tasks, and a map of the tokens.

In: a run whose network has a pool of tasks, `prior/task`, with a row per class. Out: cosines as
JSON and Markdown, and the map as SVG.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from medjax import __version__, files
from medjax.errors import UsageError, did_you_mean
from medjax.infer import outputs, owned
from medjax.metrics import tables
from medjax.report.charts import DOT, FAINT, INK, STYLE, escape

POOL = "prior/task"
KIND, NAMES = "priors", ("priors.json", "priors.md", "priors.svg")
SIDES = ("left ", "right ")
STEPS, EXAGGERATED = 600, 150  # of the map


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The trained tokens: names, vectors (n, c), and the names of those that are zero."""

    names: tuple[str, ...]
    vectors: np.ndarray
    untrained: tuple[str, ...] = ()


def of_run(path: Path | str) -> Tokens:
    """The tokens of a run or an archive.

    Raises: `UsageError` for a network without a pool of tasks by class, or with fewer than three
      trained tokens.
    """
    from medjax.runs.trained import read_model

    one = read_model(path)
    flat = traverse_util.flatten_dict(one.params(), sep="/")
    classes = one.space.classes
    if POOL not in flat or len(flat[POOL]) != len(classes):
        raise UsageError(
            "the network of this run has no token of every class",
            path=path,
            fix="give a run with context priors (configs/segvol.py:c10)",
        )
    return trained(classes, np.asarray(flat[POOL], np.float64), path)


def trained(names: Sequence[str], pool: np.ndarray, path: Path | str = "") -> Tokens:
    """The tokens that are not zero, as they begin; see `of_run`."""
    lengths = np.linalg.norm(pool, axis=1)
    kept = [k for k, length in enumerate(lengths) if length > 1e-9]
    if len(kept) < 3:
        raise UsageError("fewer than three tokens of tasks are trained", path=path, found=len(kept))
    left = tuple(name for k, name in enumerate(names) if k not in kept)
    return Tokens(tuple(names[k] for k in kept), pool[kept], left)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors."""
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))


def sides(names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(a, b, c, d) of every analogy a - b + c = d of sides: left X - right X + right Y = left Y."""
    own = [name.removeprefix(SIDES[0]) for name in names if name.startswith(SIDES[0])]
    both = [name for name in own if SIDES[1] + name in names]
    return [
        (SIDES[0] + x, SIDES[1] + x, SIDES[1] + y, SIDES[0] + y)
        for x, y in itertools.permutations(both, 2)
    ]


def analogy(tokens: Tokens, words: Sequence[str]) -> dict[str, Any]:
    """a - b + c against d: the cosine, and the rank of d among all tokens but a, b and c.

    Raises: `UsageError` for a name that has no trained token.
    """
    for name in words:
        if name not in tokens.names:
            raise UsageError(f"no trained token of {name!r}", fix=did_you_mean(name, tokens.names))
    a, b, c, d = (tokens.vectors[tokens.names.index(name)] for name in words)
    made = a - b + c
    others = [n for n in tokens.names if n not in words[:3] or n == words[3]]
    near = sorted(others, key=lambda n: -cosine(made, tokens.vectors[tokens.names.index(n)]))
    return {
        "a": words[0],
        "b": words[1],
        "c": words[2],
        "d": words[3],
        "cosine": cosine(made, d),
        "rank": near.index(words[3]) + 1,
        "of": len(others),
        "nearest": near[0],
    }


def placed(
    vectors: Float[np.ndarray, "n c"], perplexity: float = 5.0, seed: int = 0
) -> Float[np.ndarray, "n 2"]:
    """A map in which near vectors are near: t-SNE (van der Maaten and Hinton, 2008), exact, begun
    at the two main axes of the vectors.
    """
    n = len(vectors)
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    rng = np.random.default_rng(seed)
    y = centred @ axes[:2].T if len(axes) > 1 else np.zeros((n, 2))
    y = 1e-2 * y / max(np.abs(y).max(), 1e-12) + rng.normal(scale=1e-4, size=(n, 2))
    p = _affinities(_squared(vectors), min(perplexity, (n - 1) / 3))
    step, gains = np.zeros_like(y), np.ones_like(y)
    for number in range(STEPS):
        near = 1 / (1 + _squared(y))
        np.fill_diagonal(near, 0)
        q = np.maximum(near / near.sum(), 1e-12)
        pull = (p * (4 if number < EXAGGERATED else 1) - q) * near
        slope = 4 * (pull.sum(1)[:, None] * y - pull @ y)
        gains = np.maximum(
            np.where(np.sign(slope) == np.sign(step), gains * 0.8, gains + 0.2), 0.01
        )
        step = (0.5 if number < EXAGGERATED else 0.8) * step - 10.0 * gains * slope
        y = y + step
        y = y - y.mean(0)
    return y


def _squared(vectors: np.ndarray) -> np.ndarray:
    return np.square(vectors[:, None] - vectors[None]).sum(-1)


def _affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Symmetric probabilities whose rows have this perplexity, by bisection of their precision."""
    n = len(distances)
    found = np.zeros((n, n))
    for i, row in enumerate(distances):
        others = np.delete(row, i)
        scale = max(others.mean(), 1e-12)
        low, high = 0.0, np.inf
        beta = 1 / scale
        for _ in range(60):
            weight = np.exp(-(others - others.min()) * beta)
            share = weight / weight.sum()
            entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)))
            if entropy > np.log(perplexity):
                low, beta = beta, beta * 2 if high == np.inf else (beta + high) / 2
            else:
                high, beta = beta, (beta + low) / 2
        found[i, np.arange(n) != i] = share
    return (found + found.T) / (2 * n)


def measured(tokens: Tokens, words: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Analogies (all of sides, without `words`), the nearest token of each, and the map."""
    unit = tokens.vectors / np.linalg.norm(tokens.vectors, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -2)
    asked = [tuple(one) for one in words] or sides(tokens.names)
    return {
        "analogies": [analogy(tokens, one) for one in asked],
        "nearest": {
            name: {"name": tokens.names[int(row.argmax())], "cosine": float(row.max())}
            for name, row in zip(tokens.names, alike, strict=True)
        },
        "map": dict(zip(tokens.names, placed(tokens.vectors).tolist(), strict=True)),
        "untrained": list(tokens.untrained),
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    escaped = tables.escaped
    lines = ["# Tokens of tasks", ""]
    if found["analogies"]:
        heads = ["a - b + c", "d", "cosine with d", "rank of d", "nearest"]
        rows = [
            [
                escaped(f"{one['a']} - {one['b']} + {one['c']}"),
                escaped(one["d"]),
                f"{one['cosine']:+.2f}",
                f"{one['rank']} of {one['of']}",
                escaped(one["nearest"]),
            ]
            for one in found["analogies"]
        ]
        lines += tables.table(heads, rows)
    rows = [
        [escaped(name), escaped(one["name"]), f"{one['cosine']:+.2f}"]
        for name, one in found["nearest"].items()
    ]
    lines += tables.table(["task", "nearest task", "cosine"], rows)
    if found["untrained"]:
        lines += ["Not trained: " + ", ".join(map(escaped, found["untrained"])) + ".", ""]
    return "\n".join([*lines, f"Computed by medjax {__version__}.", ""])


def drawn(found: dict[str, Any]) -> str:
    """The map as SVG."""
    places = np.array(list(found["map"].values()))
    low, high = places.min(0), places.max(0)
    at = 40 + 480 * (places - low) / np.maximum(high - low, 1e-9)
    marks = [f'<text x="12" y="16" font-weight="600" fill="{INK}">Tokens of tasks (t-SNE)</text>']
    for name, (x, y) in zip(found["map"], at, strict=True):
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{DOT}"/>')
        marks.append(f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" fill="{FAINT}">{escape(name)}</text>')
    size = 'viewBox="0 0 700 560" width="700" height="560"'
    head = f'<!-- medjax {__version__} -->\n<svg xmlns="http://www.w3.org/2000/svg" {size} {STYLE}>'
    return head + "\n".join(marks).replace("currentColor", "#1b1f24") + "</svg>"


def write(found: dict[str, Any], folder: Path, *, overwrite: bool = False) -> None:
    """Writes priors.json, priors.md and priors.svg.

    Raises: `UsageError` if one of them is there and medjax did not write it, unless `overwrite`.
    """
    owned.refuse_foreign(
        folder,
        NAMES,
        lambda name: (
            owned.document(folder / name, KIND) is not None
            if name == NAMES[0]
            else owned.is_marked(folder / name)
        ),
        overwrite=overwrite,
        what="the tokens of tasks",
    )
    outputs.make_folder(folder)
    files.write_text(folder / NAMES[0], json.dumps(found | owned.mark(KIND), indent=1))
    files.write_text(folder / NAMES[1], markdown(found))
    files.write_text(folder / NAMES[2], drawn(found))
