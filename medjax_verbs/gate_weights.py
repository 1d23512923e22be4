"""Mean gate weights of a trained mixture of experts, by modality, stage and block.

In: a run folder with its store. Out: a table (JSON, text) and a heat map. M4oE claims that experts
stay tied to their modality although the gate never sees it; this table shows whether they do.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from medjax import files
from medjax.errors import UsageError
from medjax.infer import outputs, owned
from medjax.models import context as contexts
from medjax.runs import adapt, build, fitted, stages
from medjax.runs import folder as runfolder
from medjax.runs import open as corpora
from medjax.sample import stream
from medjax.sample.batch import dequantise, facts
from medjax.train import checkpoint
from medjax.weights import experts


@dataclasses.dataclass(frozen=True)
class Gates:
    """Mean gate weights.

    Attributes:
      blocks: names in the order of the network. experts: names. corpora: corpus -> its modality, in
        order.
      weights: (corpora, blocks, experts), each row of experts sums to 1.
      slices: how many patches each corpus was measured on.
    """

    blocks: tuple[str, ...]
    experts: tuple[str, ...]
    corpora: Mapping[str, str]
    weights: np.ndarray
    slices: int

    def by_modality(self) -> dict[str, np.ndarray]:
        """Modality -> (blocks, experts), the mean over its corpora."""
        words = list(self.corpora.values())
        return {
            m: self.weights[[i for i, w in enumerate(words) if w == m]].mean(0)
            for m in dict.fromkeys(words)
        }

    def to_json(self) -> dict:
        """JSON-ready: corpus -> block -> expert -> weight, and by modality over all blocks."""
        table = {
            corpus: {
                b: dict(zip(self.experts, map(float, row), strict=True))
                for b, row in zip(self.blocks, rows, strict=True)
            }
            for corpus, rows in zip(self.corpora, self.weights, strict=True)
        }
        mean = {
            m: dict(zip(self.experts, map(float, rows.mean(0)), strict=True))
            for m, rows in self.by_modality().items()
        }
        return {
            "modalities": dict(self.corpora),
            "mean": mean,
            "blocks": table,
            "slices": self.slices,
        }

    def markdown(self) -> str:
        """Rows: modalities; columns: experts. Means over each side's blocks, then each block."""
        lines = [
            "| modality | blocks | " + " | ".join(self.experts) + " |",
            "|---|---|" + "---:|" * len(self.experts),
        ]
        for modality, rows in self.by_modality().items():
            for side in dict.fromkeys(b.split("/")[0] for b in self.blocks):
                own = rows[[i for i, b in enumerate(self.blocks) if b.startswith(side)]].mean(0)
                lines.append(
                    f"| {modality} | all of the {side} | "
                    + " | ".join(f"{v:.3f}" for v in own)
                    + " |"
                )
        for modality, rows in self.by_modality().items():
            for block, row in zip(self.blocks, rows, strict=True):
                lines.append(
                    f"| {modality} | {block} | " + " | ".join(f"{v:.3f}" for v in row) + " |"
                )
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        """One heat map per corpus, blocks down and experts across."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(1.6 + 1.5 * len(self.corpora), 0.8 + 0.32 * len(self.blocks)),
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(self.corpora), squeeze=False, sharey=True)[0]
        for axis, (corpus, modality), rows in zip(
            axes, self.corpora.items(), self.weights, strict=True
        ):
            shown = axis.imshow(rows, vmin=0, vmax=1, aspect="auto", cmap="viridis")
            axis.set_title(f"{corpus}\n{modality}", fontsize=8)
            axis.set_xticks(range(len(self.experts)), self.experts, rotation=60, fontsize=7)
            axis.set_yticks(range(len(self.blocks)), self.blocks, fontsize=6)
        figure.colorbar(shown, ax=list(axes), label="mean gate weight")
        with files.replacing(path) as file:
            figure.savefig(file, format="png", dpi=150)


def measure(folder: Path, *, batches: int = 8, side: str = "val", which: str = "last") -> Gates:
    """Runs patches of every corpus through a trained network, half of them centred on foreground.

    Args:
      folder: the run, with its store. batches: per corpus, of the run's batch size. side: "val" or
        "train" cases. which: checkpoint.

    Raises: `UsageError` for a network without gated experts, or a run without cases on that side.
    """
    config, space, plan = (
        runfolder.read_config(folder),
        runfolder.read_space(folder),
        runfolder.read_plan(folder),
    )
    net = build.make_network(config, space, plan.mean_spacing())
    params = fitted.check_finite(
        checkpoint.load_params(folder / "checkpoints", net.abstract(), which=which), folder
    )
    run = stages.Run(config, folder, corpora.open_data(config.data, folder), plan)
    drawn = stages.pools(run, side)
    if not drawn:
        raise UsageError(
            "no case to look at", path=folder, found=f"side {side!r}", fix='take side "train"'
        )
    common = {
        "batch": config.train.batch,
        "final": net.patch,
        "dims": len(net.patch),
        "channels": net.channels,
    }
    recipe = stream.Recipe(patch=net.patch, seed=config.seed + 2, foreground=0.5, **common)

    @jax.jit
    def gates(batch: dict) -> dict:
        known = facts(batch) | {"task": jnp.asarray(net.tasks, jnp.int32)[batch["corpus"]]}
        context = contexts.of_batch(net.reads, known)
        found = net.apply(params, dequantise(batch), context).get("gates", {})
        return {name: w.mean(tuple(range(w.ndim - 1))) for name, w in found.items()}

    rows, names = [], {}
    for pool in drawn:
        total: dict[str, np.ndarray] = {}
        for _, batch in zip(range(batches), stream.stream([pool], recipe), strict=False):
            for name, value in gates(batch).items():
                total[name] = total.get(name, 0) + np.asarray(value) / batches
        if not total:
            fix = 'train with model.mlp.kind "experts" and routing "gate"'
            raise UsageError(
                "this network has no gate that weighs experts",
                path=folder,
                found=config.model.as_given(),
                fix=fix,
            )
        corpus = space.corpora[pool.corpus]
        names[corpus.name] = corpus.modality
        rows.append(total)
    # jax has sorted them by name alone
    blocks = tuple(
        sorted(rows[0], key=lambda name: (not name.startswith("encoder"), *_order(name)))
    )
    weights = np.stack([np.stack([row[b] for b in blocks]) for row in rows])
    known = adapt.expert_names(config, space, experts.count(params))
    return Gates(blocks, known, names, weights, batches * recipe.batch)


def _order(name: str) -> tuple:
    """layer2 before layer10."""
    return tuple(int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name))


FILES = ("gates.json", "gates.md", "gates.png")


def check(out: Path, *, overwrite: bool = False) -> None:
    """`UsageError` if medjax did not write a file with one of the names."""
    known = (
        owned.document(out / "gates.json", "gates") is not None
    )  # then medjax wrote the others beside it as well
    owned.refuse_foreign(
        out, FILES, lambda name: known, overwrite=overwrite, what="the table of gates"
    )


def write(found: Gates, out: Path, *, overwrite: bool = False) -> None:
    """Writes gates.json, gates.md and gates.png into a folder.

    `UsageError` if one of them exists and medjax did not write it, unless `overwrite`.
    """
    check(out, overwrite=overwrite)
    outputs.make_folder(out)
    files.write_json(out / "gates.json", found.to_json() | owned.mark("gates"))
    files.write_text(out / "gates.md", found.markdown() + "\n")
    found.picture(out / "gates.png")
