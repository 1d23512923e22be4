"""API and evaluation: damaged predictions, threads, arrays of every type, affines and arguments
that make no sense.
"""

import concurrent.futures
import warnings
from collections.abc import Callable, Iterator

import nibabel as nib
import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import SOME_FAILED, Seen, Site, medjax, refused, row
from medjax.errors import DataError, LabelError, MedjaxError, UsageError

SIDE = (12, 14, 13)


def _predictor(site: Site, **options):
    import medjax as package

    return package.Predictor(m.run(site), **options)


def raised(variant: str, work: Callable[[], object], *kinds: type) -> Seen:
    """As expected if `work` raises one of the kinds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = work()
    except kinds as error:
        return Seen(variant, True, f"{type(error).__name__}: {str(error)[:120]}")
    except Exception as error:
        return Seen(variant, False, f"raw {type(error).__name__}: {str(error)[:160]}")
    return Seen(variant, False, f"accepted: {type(found).__name__}")


@row("A1", "evaluate: broken, missing, other, extra and hostile predictions", "pass")
def evaluation(site: Site) -> Iterator[Seen]:
    (labels := site.path("dataset.json")).write_text(
        '{"labels": {"background": 0, "organ": 1, "tumour": 2}, "channel_names": {"0": "CT"}}'
    )
    for case in ("good", "broken", "missing", "shape", "value", "<script>x"):
        label = m.image(0)[1]
        m.make_raw.save(site.path("ref", f"{case}.nii.gz"), label)
        if case != "missing":
            m.make_raw.save(
                site.path("pred", f"{case}.nii.gz"),
                label[1:] if case == "shape" else label + 50 * (case == "value"),
            )
    (site.root / "pred" / "broken.nii.gz").write_bytes(b"no mask")
    m.make_raw.save(site.path("pred", "extra.nii.gz"), m.image(0)[1])
    words = ("--labels", labels, "-o", site.root / "out", "--resamples", 20, "--quiet")
    said = medjax(
        "evaluate", "--reference", site.root / "ref", "--prediction", site.root / "pred", *words
    )
    table = (
        (site.root / "out" / "cases.csv").read_text()
        if (site.root / "out" / "cases.csv").exists()
        else ""
    )
    page = (
        (site.root / "out" / "report.html").read_text()
        if (site.root / "out" / "report.html").exists()
        else "<script>x"
    )
    summary = (
        (site.root / "out" / "summary.json").read_text()
        if (site.root / "out" / "summary.json").exists()
        else ""
    )
    ok = "good" in table and "<script>x" not in page and "extra" in summary
    yield refused("six cases", said, "broken", "shape", "value", codes=(SOME_FAILED,), also=ok)


@row("A2", "six threads on one Predictor", "pass")
def threads(site: Site) -> Iterator[Seen]:
    predictor, scans = _predictor(site), [m.image(i, (12, 14 + i, 13), "CT")[0] for i in range(6)]
    serial = [predictor.predict(s, np.eye(4)) for s in scans]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda s: predictor.predict(s, np.eye(4)), scans * 2))
    same = all(np.array_equal(a, b) for a, b in zip(found, serial * 2, strict=True))
    yield Seen(
        "as in a row",
        same and any(s.any() for s in serial),
        f"{sum(int(s.sum()) for s in serial)} voxels",
    )


@row("A3", "arrays and images of every type", "pass")
def arrays(site: Site) -> Iterator[Seen]:
    predictor, array = _predictor(site), m.image(0, SIDE, "CT")[0]
    right = predictor.predict(array, np.eye(4))
    np.save(site.path("a.npy"), array)
    for variant, given in {
        **{np.dtype(t).name: array.astype(t) for t in ("i2", "i4", "i8", "f4", "f8", ">f4", ">i2")},
        "strides": np.asfortranarray(array),
        "negative strides": array[::-1].copy()[::-1],
        "memory map": np.load(site.root / "a.npy", mmap_mode="r"),
        "masked": np.ma.masked_array(array),
        "one channel": array[..., None],
    }.items():
        before = np.array(given)
        found = predictor.predict(given, np.eye(4))
        yield Seen(
            variant,
            np.array_equal(np.squeeze(found), right) and np.array_equal(before, np.asarray(given)),
            f"{int(np.sum(found))}",
        )
    array.flags.writeable = False
    yield Seen("read-only", np.array_equal(predictor.predict(array, np.eye(4)), right), "")
    for variant, given in {
        "complex": array.astype(complex),
        "text": array.astype(str),
        "empty": array[:0],
        "2D": array[0],
        "0D": np.float32(1)[()] * np.ones(()),
        "NaN": np.where(array > 0, np.nan, array),
        "5D": array[..., None, None],
        "objects": array.astype(object),
    }.items():
        yield raised(
            variant, lambda given=given: predictor.predict(given, np.eye(4)), DataError, UsageError
        )
    image = nib.Nifti1Image(array.T, np.eye(4))
    for variant, other in (
        ("MGH", nib.MGHImage(array.T.copy(), np.eye(4))),
        ("pair", nib.Nifti1Pair(array.T, np.eye(4))),
    ):
        found = np.asarray(predictor.predict(other).dataobj)
        yield Seen(variant, np.array_equal(found, np.asarray(predictor.predict(image).dataobj)), "")


@row("A4", "affines that are none", "weak")
def affines(site: Site) -> Iterator[Seen]:
    predictor, array = _predictor(site), m.image(0, SIDE, "CT")[0]
    last = np.eye(4)
    last[3] = 1, 2, 3, 4
    for variant, affine in {
        "3x3": np.eye(3),
        "3x4": np.eye(4)[:3],
        "NaN": np.full((4, 4), np.nan),
        "zeros": np.zeros((4, 4)),
        "infinite": np.eye(4) * np.inf,
        "text": "affine",
        "last row": last,
        "a list of text": [["a"] * 4] * 4,
        "a number": 5,
        "complex": np.eye(4) * 1j,
        "flat": np.diag([1, 1, 0, 1.0]),
        "objects": np.full((4, 4), None),
        "5x5": np.eye(5),
        "ragged": [[1, 0], [0]],
    }.items():
        yield raised(variant, lambda affine=affine: predictor.predict(array, affine), DataError)
    good = predictor.predict(array, np.eye(4).tolist())
    yield Seen("a list of numbers", good.shape == array.shape, "")


@row("A5", "arguments that make no sense", "weak")
def arguments(site: Site) -> Iterator[Seen]:
    import medjax as package

    run = m.run(site)
    for variant, work in {
        "no model": lambda: package.Predictor(None),
        "a number": lambda: package.Predictor(5),
        "[None]": lambda: package.Predictor([None]),
        "tta": lambda: package.Predictor(run, tta="x"),
        "batch_windows": lambda: package.Predictor(run, batch_windows=-3),
        "batch_windows text": lambda: package.Predictor(run, batch_windows="many"),
        "an option": lambda: package.Predictor(run, colour="red"),
        "overlap": lambda: package.Predictor(run, overlap="half"),
        "overlap 2": lambda: package.Predictor(run, overlap=2.0),
        "overlap NaN": lambda: package.Predictor(run, overlap=float("nan")),
        "window": lambda: package.Predictor(run, window=("a",)),
        "window 0": lambda: package.Predictor(run, window=(0, 0, 0)),
        "device": lambda: package.Predictor(run, device="quantum"),
        "classes": lambda: package.Predictor(run, classes=[5]),
        "classes text": lambda: package.Predictor(run, classes="organ"),
        "corpus": lambda: package.Predictor(run, corpus="x"),
        "checkpoint": lambda: package.Predictor(run, checkpoint="first"),
        "memory": lambda: package.Predictor(run, memory_gib=-1.0),
        "postprocess": lambda: package.Predictor(run, postprocess="x"),
    }.items():
        kinds = (
            (UsageError, LabelError) if variant not in ("checkpoint", "memory") else (MedjaxError,)
        )
        if variant == "classes text":
            found = raised(variant, work, *kinds)
            yield Seen(variant, found.ok or found.seen.startswith("accepted"), found.seen)
        else:
            yield raised(variant, work, *kinds)
