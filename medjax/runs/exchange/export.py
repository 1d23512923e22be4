"""`medjax export`: a run folder -> a weights archive, a function archive, or a slim run folder.

In: a run. Out: a file (or folder) that gives the same predictions as the run and records its origin
and the licences of its training data. Paths of the training machine are not included.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import __version__
from medjax.errors import MedjaxError, UsageError, did_you_mean
from medjax.runs import folder as runfolder
from medjax.runs import trained as models
from medjax.runs.settings.schema import Config
from medjax.weights.formats import archive

LOCAL = (("data", "folders"), ("data", "tfds"), ("data", "root"), ("data", "store"))
LOCAL += (("data", "split", "file"),)
UNKNOWN = "not stated"


def export(
    path: Path,
    out: Path,
    kind: str = "weights",
    *,
    checkpoint: str = "",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    licences: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes the model of a run; returns the text to print.

    Args:
      path: run folder or weights archive. out: file, or folder for kind "orbax".
      kind: "weights", "function" or "orbax". licences: corpus -> licence, for data sets that state
        none.
    """
    check_output(out, kind, overwrite=overwrite)
    trained = models.read_model(path)
    params = trained.params(checkpoint)
    documents, facts = (
        describe(trained, licences or {}),
        {"provenance": provenance(trained, checkpoint)},
    )
    facts["licences"] = documents.pop("licences")
    if kind == "function":
        from medjax.weights.formats import stablehlo

        payload, calling = stablehlo.pack(trained.network, params, platforms)
        return _archive(
            out, kind, payload, documents, facts | {"function": calling}, overwrite=overwrite
        )
    return write_model(params, out, kind, documents, facts, overwrite=overwrite)


def check_output(out: Path, kind: str, *, overwrite: bool = False) -> None:
    """`UsageError` for a name that cannot be used, and for what exists and must not be replaced."""
    if os.path.lexists(out) and (not overwrite or out.is_dir()):
        raise UsageError(
            "exists already",
            path=out,
            fix="choose another name" + ("" if out.is_dir() else ", or add --overwrite"),
        )
    if kind != "orbax" and out.suffix != ".medjax":
        raise UsageError("unusable name", path=out, expected="a name that ends in .medjax")
    if os.path.lexists(out) and not archive.is_ours(out):
        raise UsageError(
            "exists and is no model archive, so it is not replaced",
            path=out,
            fix="choose another name",
        )


def write_model(
    params: Any,
    out: Path,
    kind: str,
    documents: Mapping,
    facts: Mapping,
    *,
    overwrite: bool = False,
) -> str:
    """Writes parameters with the documents that describe them; returns the text to print.

    Args:
      kind: "weights" for an archive, "orbax" for a run folder; see `check_output`.
      documents, facts: see `weights.formats.archive.write`.
    """
    if kind == "orbax":
        return _slim_run(out, params, documents, facts)
    payload = archive.pack_arrays(named_arrays(params))
    return _archive(out, kind, payload, documents, facts, overwrite=overwrite)


def _archive(
    out: Path, kind: str, payload: bytes, documents: Mapping, facts: Mapping, *, overwrite: bool
) -> str:
    digest = archive.write(out, kind, documents, payload, facts, overwrite=overwrite)
    missing = [name for name, text in facts["licences"].items() if text == UNKNOWN]
    note = (
        f"\nno licence is stated for {', '.join(missing)}: add --licence CORPUS=TEXT"
        if missing
        else ""
    )
    return f"{out}  {out.stat().st_size / 2**20:.1f} MiB\nsha256 {digest}{note}"


def describe(trained: models.Trained, licences: Mapping[str, str]) -> dict[str, Any]:
    """The JSON documents of an archive: config, labels, plan, licences and optional others."""
    space = trained.space
    stores = list(dict.fromkeys(corpus.store for corpus in space.corpora))
    for name in licences:
        if name not in stores:
            raise UsageError(f"no corpus {name!r} to license", fix=did_you_mean(name, stores))
    found = {
        "config": without_paths(trained.config),
        "labels": space.to_json(),
        "plan": trained.plan.to_json(),
        "licences": {
            name: licences.get(name) or _stated(trained, name) or UNKNOWN for name in stores
        },
    }
    if trained.postprocess:
        found["postprocess"] = trained.postprocess
    if trained.archive:
        kept = {
            name: trained.archive.documents[name]
            for name in ("environment", "splits_final", "summary")
            if name in trained.archive.documents
        }
        return found | kept
    files = {
        "environment": runfolder.ENVIRONMENT,
        "splits_final": runfolder.SPLITS,
        "summary": "evaluation/summary.json",
    }
    for name, file in files.items():
        if (trained.path / file).is_file():
            found[name] = runfolder.read_json(trained.path, file)
    if "environment" in found:
        found["environment"] = {
            k: v for k, v in found["environment"].items() if k in ("versions", "devices", "git")
        }
    return found


def without_paths(config: Config) -> dict:
    """The config as a document, with the paths of the training machine removed."""
    fields = json.loads(json.dumps(config.as_given()))
    for *outer, last in LOCAL:
        node = fields
        for key in outer:
            node = node.get(key, {})
        if last in node:
            node[last] = ""
    return fields


def provenance(trained: models.Trained, checkpoint: str) -> dict:
    """Origin of an export: experiment, step, exporter, digest of the source archive."""
    if trained.archive:
        return dict(trained.archive.manifest.get("provenance", {})) | {
            "from_archive": trained.archive.sha256
        }
    from medjax.train import checkpoint as checkpoints

    which = checkpoint or trained.config.infer.checkpoint
    return {
        "experiment": trained.config.name,
        "step": int(checkpoints.find(trained.path, which).name),
        "checkpoint": which,
        "medjax": __version__,
    }


def named_arrays(params: Any) -> dict[str, np.ndarray]:
    """Parameter tree -> "path/of/leaf" -> array."""
    import jax

    from medjax.train import rules

    return {
        rules.path_name(keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def given_licences(texts: Sequence[str]) -> dict[str, str]:
    """ "CORPUS=TEXT" -> mapping."""
    found = {}
    for text in texts:
        name, equals, licence = text.partition("=")
        if not (name and equals and licence):
            raise UsageError("unusable licence", found=text, expected="CORPUS=TEXT")
        found[name] = licence
    return found


def _stated(trained: models.Trained, store: str) -> str:
    """The licence in a corpus' dataset.json, if the data set is still there; or in the archive."""
    if trained.archive:
        return trained.archive.manifest.get("licences", {}).get(store, "")
    from medjax.corpora.sources import read_labels

    data = trained.config.data
    folders = [Path(f.strip()).expanduser() for f in data.folders.split(",") if f.strip()] + sorted(
        (trained.path / "phantoms").glob("*")
    )
    folders += [Path(data.root) / store] if data.root else []
    for folder in folders:
        try:
            if read_labels(folder).name != store:
                continue
            described = json.loads((folder / "dataset.json").read_text(encoding="utf-8-sig"))
        except (MedjaxError, OSError, ValueError):
            continue
        block = described.get("medjax") or {}
        for place in (block, described):
            for word in ("licence", "license"):
                if isinstance(place.get(word), str):
                    return place[word]
    return ""


def _slim_run(out: Path, params: Any, documents: Mapping, facts: Mapping) -> str:
    from medjax.train import checkpoint as checkpoints

    names = {
        "config": runfolder.CONFIG,
        "labels": runfolder.LABELS,
        "plan": runfolder.PLAN,
        "postprocess": models.POSTPROCESS,
    }
    for name, file in names.items():
        if name in documents:
            runfolder.write_json(out / file, documents[name])
    runfolder.write_json(out / "provenance.json", facts)
    with checkpoints.Checkpoints(out / "checkpoints") as target:
        target.save(
            facts["provenance"].get("step", 0),
            {"params": params},
            {"provenance": facts["provenance"]},
        )
    return f"{out}  a run folder with the parameters only: `medjax predict -m {out}` reads it"
