"""`medjax pseudo`: a corpus of anonymous regions of scans, for promptable networks."""

import dataclasses
from pathlib import Path

from medjax.errors import EXIT_OK, UsageError, shown


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "pseudo",
        help="describe a corpus whose labels are regions found in the scans without any annotation",
    )
    p.add_argument("corpus", help="folder of the corpus, in any layout; labels are not needed")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder for corpus.json and the labels; give it to a run",
    )
    p.add_argument("--most", type=int, default=32, help="regions of a scan, the largest ones")
    p.add_argument(
        "--share", type=float, default=0.001, help="of the scan, below which a region is left out"
    )
    p.add_argument(
        "--largest", type=float, default=0.5, help="share above which a region is left out (air)"
    )
    p.add_argument(
        "--without-labels",
        action="store_true",
        help="do not add the objects of the corpus' own labels as regions without a name",
    )
    p.add_argument("--name", default="", help="of the new corpus; default NAME_regions")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_pseudo)


def _pseudo(args) -> int:
    from medjax.corpora import sources
    from medjax.corpora.layouts import corpus_json
    from medjax.corpora.twins import rules_of
    from medjax_verbs import pseudo_regions

    settings = pseudo_regions.Settings(most=args.most, share=args.share, largest=args.largest)
    corpus, cases, problems = sources.scan_corpus(args.corpus)
    for problem in problems:
        print(f"left out: {problem}")
    folder, name = Path(args.output), args.name or f"{corpus.name}_regions"
    if name == corpus.name:
        raise UsageError("the corpus of regions needs a name of its own", found=name)
    if Path(args.corpus).is_dir() and folder.resolve() == Path(args.corpus).resolve():
        raise UsageError("this is the folder of the corpus", path=folder, fix="choose another one")
    twins = [dataclasses.asdict(rule) for rule in rules_of(args.corpus)]
    note = "the same scans"
    twins.append({"corpus": corpus.name, "cases": "(.+)", "other": r"\1", "note": note})
    known = corpus_json.facts(args.corpus)
    facts = known | {"twins": twins, "regions": dataclasses.asdict(settings)}
    described, most = [], 0
    for number, case in enumerate(cases, 1):
        path = folder / "labels" / f"{case.name}.nii.gz"
        count = _write(path, case, corpus, settings, not args.without_labels)
        most = max(most, count)
        described.append(dataclasses.replace(case, label=str(path), masks=(), corpus=name))
        if not args.quiet:
            print(f"{number}/{len(cases)} {shown(case.name)}: {count} regions", flush=True)
    if not most:
        raise UsageError("no scan has a region", path=args.corpus, fix="lower --share")
    labels = tuple((k, (f"region {k}",)) for k in range(1, most + 1))
    own = dataclasses.replace(
        corpus, name=name, store=name, labels=labels, annotated=(), ignore=None, meanings=()
    )
    path = corpus_json.write(folder, own, described, facts)
    print(f"{len(described)} cases with up to {most} regions described in {path}")
    print(
        f"regions have no names: train with --config.task_options.sets_of.{name}="
        "\"('box', 'points', 'box+points')\""
    )
    return EXIT_OK


def _write(path: Path, case, corpus, settings, with_labels: bool) -> int:
    """Writes the regions of a scan; returns their number."""
    import numpy as np

    from medjax.corpora.cases import load
    from medjax.scans import nifti
    from medjax_verbs import pseudo_regions

    volume, ids = load(case, corpus)
    image = np.asarray(volume.array[..., 0], np.float32)
    if ids is not None and corpus.ignore is not None:
        ids = np.where(ids == corpus.ignore_id, 0, ids)
    found = pseudo_regions.regions(image, settings)
    found = pseudo_regions.pasted(found, ids if with_labels else None)
    values = np.unique(found[found > 0])
    dense = np.searchsorted(values, found) + 1  # a region may lie below labels as a whole
    dense = np.where(found > 0, dense, 0).astype(np.min_scalar_type(len(values)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, dense, volume)
    return len(values)
