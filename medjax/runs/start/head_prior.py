"""`config.init.head_prior`: where the outputs of fresh heads start.

In: a config, its label space and the training stream. Out: one number per output of the heads, for
`build.make_network`, and the document in the run folder that says what it was made from.

"prevalence": the output of every class starts at the log-odds of its share of the voxels in the
patches that the sampler draws (`sample/prevalence.py`), with a softmax at the logarithm of its
share over that of the background. A corpus counts for the classes that it annotates, with the
probability of being drawn; voxels that the loss ignores do not count. A sigmoid that starts at
probability 1/2 spends hundreds of steps on learning where a class is not; see Lin et al.,
arXiv 1708.02002, sec. 4.1.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import decision
from medjax.errors import UsageError, did_you_mean
from medjax.labels import BACKGROUND, LabelSpace
from medjax.losses.parts import exclusive
from medjax.models.parts import heads, sockets
from medjax.runs import build, hosts, sampling
from medjax.runs import folder as runfolder
from medjax.runs.settings.schema import Config
from medjax.sample import prevalence
from medjax.sample.draw import Pool, Recipe
from medjax.train import stepfolder
from medjax.weights import transfer

PREVALENCE = "prevalence"
RULES = ("", PREVALENCE)
FLOOR = 1e-4  # shares below it count as this, and shares above 1 - FLOOR as that: +-9.2
SHOWN = 6  # classes per line of the printed report


def measures(config: Config) -> bool:
    """Whether the heads of a new run start at what is measured.

    They do not where the config gives a number, `model.prior`.
    """
    own = config.model.options.get("prior")
    return config.init.head_prior == PREVALENCE and own is None


def check(config: Config) -> None:
    """`UsageError` for an unknown word, or a network whose heads have no bias to set."""
    word, name = config.init.head_prior, config.model.name
    if word not in RULES:
        raise UsageError(
            f"unknown init.head_prior {word!r}",
            expected=" or ".join(map(repr, RULES)),
            fix=did_you_mean(word, RULES[1:]),
        )
    known = build.accepted(name)
    if not measures(config) or not known:  # `build` reports an unknown network
        return
    off = 'leave config.init.head_prior empty ("")'
    if "prior" not in known or isinstance(known["prior"].default, str):  # context priors
        raise UsageError(
            f"the network {name!r} has no heads whose bias can be set, which "
            "config.init.head_prior asks for",
            fix=off,
        )
    own = known.get("head_bias")
    if own is not None and config.model.options.get("head_bias", own.default) is False:
        raise UsageError(
            f"the heads of this {name} have no bias, which config.init.head_prior sets",
            fix=f"--config.model.head_bias=True, or {off}",
        )


def start(
    config: Config,
    space: LabelSpace,
    workdir: Path,
    pools: Sequence[Pool],
    recipe: Recipe,
) -> tuple[float, ...]:
    """The numbers for `build.make_network` of a new run.

    None where nothing is measured, or if the run has a checkpoint: its heads are trained already.
    The first process measures, writes the document and prints; the others read it.

    Args:
      workdir: the run folder, which all processes see. pools, recipe: of the training stream.
    """
    if not config.init.head_prior or stepfolder.latest_step(workdir / "checkpoints") is not None:
        return ()
    if not measures(config):
        if jax.process_index() == 0:
            text = "config.model.prior says where the heads start; init.head_prior is not used"
            print(text, flush=True)
        return ()

    def measured() -> None:
        found = prevalence.count(
            pools, recipe, space.table.shape[1], threads=sampling.threads(config.sampler)
        )
        document = table(config, space, found)
        runfolder.write_json(workdir / runfolder.HEAD_PRIOR, document)
        for line in lines(document):
            print(line, flush=True)

    hosts.first(measured)
    document = runfolder.read_json(workdir, runfolder.HEAD_PRIOR)
    return tuple(float(entry["bias"]) for entry in document["outputs"])


def table(config: Config, space: LabelSpace, found: Sequence[prevalence.Count]) -> dict[str, Any]:
    """What is measured and what follows from it, JSON-ready.

    "corpora": per corpus the patches, its probability and the share of every class that it
    annotates, without its ignored voxels. "outputs": one entry per output of the heads, in their
    order, with its corpora, share, and "bias", where it starts. With a softmax a voxel counts for
    one class (`losses/parts/exclusive.py`), and "share" is relative to background plus class.
    """
    softmax = _softmax(config)
    members = _members(space, softmax)
    voxels = {count.corpus: _counted(config, space, count) for count in found}
    corpora = {}
    for count in found:
        name, own = space.corpora[count.corpus].name, voxels[count.corpus]
        total = own.sum()
        shares = {
            space.classes[c]: _share(own @ members[count.corpus, :, 1 + c], total)
            for c in np.flatnonzero(space.known[count.corpus])
        }
        corpora[name] = {
            "patches": count.samples,
            "probability": round(count.probability, 6),
            "shares": {BACKGROUND: _share(own @ members[count.corpus, :, 0], total)} | shares,
        }
    outputs = []
    for channel, annotating in _outputs(config, space):
        drawn = [k for k in annotating if k in voxels]
        inside = sum(float(voxels[k] @ members[k, :, 1 + channel]) for k in drawn)
        whole = (
            inside + sum(float(voxels[k] @ members[k, :, 0]) for k in drawn)
            if softmax
            else sum(float(voxels[k].sum()) for k in drawn)
        )
        share = _share(inside, whole)
        kept = min(max(share, FLOOR), 1 - FLOOR)
        outputs.append(
            {
                "class": space.classes[channel],
                "corpora": [space.corpora[k].name for k in drawn],
                "share": share,
                "bias": math.log(kept / (1 - kept)),
            }
        )
    return {
        "rule": PREVALENCE,
        "decision": "softmax" if softmax else "sigmoid",
        "floor": FLOOR,
        "corpora": corpora,
        "outputs": outputs,
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The printed report: one line per corpus with shares, and where the outputs start."""
    found = []
    for corpus, entry in document["corpora"].items():
        biases = {o["class"]: o["bias"] for o in document["outputs"] if corpus in o["corpora"]}
        named = [
            f"{name.removeprefix(corpus + '/')} {100 * share:.3g} % ({biases[name]:.1f})"
            for name, share in entry["shares"].items()
            if name in biases
        ]
        more = [f"{len(named) - SHOWN} more in {runfolder.HEAD_PRIOR}"] * (len(named) > SHOWN)
        found.append(
            f"heads start at the share of voxels in {entry['patches']} patches, {corpus}: "
            + ", ".join([*named[:SHOWN], *more])
        )
    return found


def without_loaded(params: Any, account: transfer.Report, names: Sequence[str]) -> Any:
    """Parameters whose loaded outputs compute what they did in the source.

    Where the source's heads have no bias, that of every output whose kernel was copied is 0 again.

    Args:
      params, account: as `transfer` returns them. names: along the class axis of the heads.
    """
    zeros = {}
    for path, copied in account.classes.items():
        bias = path.removesuffix("kernel") + "bias"
        if path.endswith("/kernel") and bias in account.fresh and set(copied) <= set(names):
            zeros[bias] = {list(names).index(name): 0.0 for name in copied}
    return transfer.with_entries(params, zeros) if zeros else params


def _softmax(config: Config) -> bool:
    by_corpus = sockets.words(config.model.to_json(), "head")["kind"] == "corpus_softmax"
    return by_corpus or decision.make(config.infer.activation).competes


def _members(space: LabelSpace, softmax: bool) -> np.ndarray:
    """(corpora, ids, 1 + classes) float: whether a voxel of an id counts as background, as a
    class.
    """
    known = space.table & space.known[:, None]
    if softmax:
        own = np.asarray(exclusive.own_class(jnp.asarray(known)))
        return (own[..., None] == np.arange(1 + len(space.classes))).astype(float)
    return np.concatenate([~known.any(-1, keepdims=True), known], -1).astype(float)


def _counted(config: Config, space: LabelSpace, count: prevalence.Count) -> np.ndarray:
    """(ids,) voxels of an average sample of the stream that the loss counts, of one corpus."""
    voxels = count.voxels.astype(float)
    if not config.mask_padding:
        voxels[0] += count.padding
    if (ignored := int(space.ignore_ids[count.corpus])) >= 0:
        voxels[ignored] = 0
    return voxels * count.probability / max(count.samples, 1)


def _outputs(config: Config, space: LabelSpace) -> list[tuple[int, list[int]]]:
    """(class, corpora that train it) of every output of the heads, in their order."""
    annotating = [np.flatnonzero(column).tolist() for column in space.known.T]
    words = sockets.words(config.model.to_json(), "head")
    if words["kind"] != "corpus_softmax":
        return list(enumerate(annotating))
    channels = tuple(tuple(np.flatnonzero(row).tolist()) for row in space.known)
    numbers = heads.numbered(words.get("share", "corpus"), channels)
    columns = heads.columns(len(space.classes), channels, numbers)[:, 1:]
    found: dict[int, tuple[int, list[int]]] = {}
    for corpus, channel in zip(*np.nonzero(columns >= 0), strict=True):
        column = int(columns[corpus, channel])
        found.setdefault(column, (int(channel), []))[1].append(int(corpus))
    return [found[column] for column in sorted(found)]


def _share(part: float, total: float) -> float:
    return float(part / total) if total > 0 else 0.0
