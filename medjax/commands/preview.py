"""`medjax preview`: pictures of prepared cases and augmented samples.

Look at them first if a training fails.
"""

import dataclasses
from pathlib import Path

from medjax import files
from medjax.errors import EXIT_OK, UsageError, did_you_mean


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "preview", help="draw prepared cases and augmented samples of a store, with their labels"
    )
    p.add_argument("store", help="store folder that `medjax prepare` or a training has filled")
    p.add_argument(
        "-o", "--output", default="", help="folder for the PNG files; default: STORE/preview"
    )
    p.add_argument("--corpus", nargs="+", default=None, help="corpora of the store; default: all")
    p.add_argument("--samples", type=int, default=4, help="cases and samples per picture")
    p.add_argument(
        "--patch",
        type=int,
        nargs="+",
        default=None,
        help="the network's patch, z y x, or y x for slices; default 64 64 64",
    )
    p.add_argument("--variants", type=int, default=3, help="augmented versions of each sample")
    p.add_argument(
        "--foreground",
        type=float,
        default=0.67,
        help="share of samples with a labelled voxel in the middle",
    )
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_preview)


def _preview(args) -> int:
    root = Path(args.store)
    corpora = (
        sorted(
            p.name
            for p in root.iterdir()
            if not p.name.startswith(".") and any(p.glob("*/case.json"))
        )
        if root.is_dir()
        else []
    )
    if not corpora:
        raise UsageError(
            "no prepared cases",
            path=root,
            fix="prepare some: medjax prepare FOLDER -o STORE; a run's are in RUN/store",
        )
    for name in args.corpus or ():
        if name not in corpora:
            raise UsageError(
                f"no corpus {name!r} in the store", path=root, fix=did_you_mean(name, corpora)
            )
    out = Path(args.output or root / "preview")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.refused(out, error) from error
    for name in args.corpus or corpora:
        for path in (_cases(root, name, out, args), _samples(root, name, out, args)):
            print(path)
    return EXIT_OK


def _chosen(root: Path, name: str, count: int) -> list:
    from medjax.prepare import store

    names = store.list_cases(root, name)
    step = max(1, len(names) // max(1, count))
    return [store.open_case(root / name / case) for case in names[::step][:count]]


def _names(meta) -> dict[int, str]:
    """Dense id -> its most specific class, by what the preparation wrote."""
    from medjax.infer.write import label_names
    from medjax.labels import Corpus

    labels = tuple((i, tuple(names)) for i, (_, names) in enumerate(meta.get("labels", ())))
    return label_names(Corpus("prepared", labels)) if labels else {}


def _cases(root: Path, name: str, out: Path, args) -> Path:
    import numpy as np

    from medjax.report import preview
    from medjax.sample.batch import dequantise

    rows, cases = [], _chosen(root, name, args.samples)
    for case in cases:
        meta, label = case.meta, case.label(outside=-1).astype(np.int32)
        numbers = {k: np.asarray(meta[k], np.float32) for k in ("gain", "bias")}
        title = (
            f"{meta['name']}  {'x'.join(map(str, meta['shape']))}  "
            f"{'x'.join(f'{s:.3g}' for s in meta['spacing_mm'])} mm"
        )
        rows.append(
            preview.planes(
                dequantise({"image": case.image()} | numbers),
                label,
                meta["spacing_mm"],
                title,
            )
        )
    path = out / f"{name}_cases.png"
    preview.sheet(rows, path, title=f"{name}: prepared cases", names=_names(cases[0].meta))
    return path


def _samples(root: Path, name: str, out: Path, args) -> Path:
    import jax
    import numpy as np

    from medjax.augment.nnunet import Augmentation, augment
    from medjax.prepare import store
    from medjax.report import preview
    from medjax.sample.batch import dequantise
    from medjax.sample.draw import Pool, Recipe, Samples
    from medjax.sample.patches import enlarged_patch

    final = tuple(args.patch or (64, 64, 64))
    names = store.list_cases(root, name)
    metas = [store.open_case(root / name / case).meta for case in names]
    ids = tuple(
        sorted({int(i) for meta in metas for i, n in meta["voxels"].items() if n and int(i) > 0})
    )
    pool = Pool(0, str(root / name), tuple(names), ids, 0)
    recipe = Recipe(
        enlarged_patch(final),
        args.samples,
        foreground=args.foreground,
        seed=args.seed,
        dims=len(final),
        final=final,
        channels=max(len(meta["gain"]) for meta in metas),
    )
    spare = tuple(sorted({c for meta in metas for c in meta.get("masks", ())}))
    draw, run = Samples([pool], recipe), jax.jit(augment, static_argnums=(3, 4))
    plain = dataclasses.replace(Augmentation.none(), spare_channels=spare)
    changed = Augmentation(spare_channels=spare)
    rows = []
    for k in range(args.samples):
        sample = draw(k)
        image, label = (
            dequantise(sample)[None],
            sample["label"].astype(np.int32)[None],
        )
        panels = []
        for variant, settings in enumerate([plain] + [changed] * args.variants):
            pictured, labelled = run(
                jax.random.fold_in(jax.random.key(args.seed), k * (args.variants + 1) + variant),
                image,
                label,
                final,
                settings,
            )
            title = f"{names[int(sample['case'])]}" if variant == 0 else f"augmented {variant}"
            panels.append(
                preview.middle(
                    np.asarray(pictured[0]), np.asarray(labelled[0]), sample["spacing_mm"], title
                )
            )
        rows.append(panels)
    path = out / f"{name}_samples.png"
    size = "x".join(map(str, final))
    preview.sheet(
        rows,
        path,
        title=f"{name}: samples of {size}, plain and augmented (dark red: outside)",
        names=_names(metas[0]),
    )
    return path
