"""Public Python API: `medjax.predict(image, model)` and the reusable `medjax.Predictor(model)`.

Inputs are paths, nibabel images, or arrays (z, y, x[, m]) with the affine that nibabel would give.
Results are nibabel images, or arrays for arrays, on the same grid.

    import medjax
    mask = medjax.predict("scan.nii.gz", "runs/liver")
    predictor = medjax.Predictor("liver.medjax", tta="mirror")
    masks = [predictor.predict(image) for image in images]
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medjax import show
from medjax.errors import DataError, UsageError
from medjax.infer.model import Segmentation
from medjax.scans import formats, label_table, nifti
from medjax.scans import header as headers


class Predictor:
    """A trained model, or an ensemble, loaded once for many scans of any size.

    Args:
      models: run folder(s) or `.medjax` archive(s); several form an ensemble.
      corpus: corpus whose annotation protocol to follow; required if the model has several and
        `classes` does not determine it.
      classes: classes to predict; default all that the corpus annotates.
      adapter: an adapter file that was trained on the model. expert: of one with several, the one
        to use. force_base: accept another base.
      options: tta ("none", "mirror"), overlap, window, batch_windows, device, memory_gib,
        uncertainty, postprocess, conflicts, fast, zoom, checkpoint: as in `medjax predict` (see
        `runs.trained.load_predictor`).

    Attributes:
      classes, corpus: the predicted classes and the corpus whose protocol is followed.
      request: the same, and what else is asked of the model, see `prompts.request.Request`.
      labels: label value -> class name of the masks that `predict` returns.
    """

    def __init__(
        self,
        models: Any,
        *,
        corpus: str = "",
        classes: Any = None,
        adapter: Any = "",
        expert: str = "",
        force_base: bool = False,
        **options: Any,
    ):
        from medjax.infer.write import label_names
        from medjax.prompts.request import Request
        from medjax.runs import options as known
        from medjax.runs.predict import adapted, protocol
        from medjax.runs.trained import load_predictor, read_model

        _check_arguments(models, classes)
        known.check(options)
        trained = [read_model(m) for m in ([models] if isinstance(models, str | Path) else models)]
        if not trained:
            raise UsageError("no model given")
        trained = adapted(trained, adapter, expert, force_base)
        space = trained[0].space.unveiled()
        asked = Request(corpus, None if classes is None else tuple(classes))
        self.request = protocol(space, asked, one_file_per_class=True)
        described = space.corpora[space.corpus_index(self.request.corpus)]
        self._predictor = load_predictor(trained, **options)
        self._predictor.name = ", ".join(str(one.path) for one in trained)
        self.corpus, self.labels = described.name, label_names(described)
        self.classes = self.request.wanted(space)

    def predict(self, image: Any, affine: Any = None) -> Any:
        """The label map of a scan.

        Args:
          image: the path of a scan (NIfTI, NRRD, MetaImage, a DICOM folder), a nibabel image, or
            (z, y, x[, m]) values with `affine`.
          affine: (4, 4) as nibabel has it, (x, y, z) voxel -> RAS+ mm; only with an array.

        Returns: a nibabel image with the input's geometry and header codes, or a (z, y, x) array of
          unsigned integers.
        Raises: `DataError` for values, channels or a geometry that cannot be used.
        """
        volume = _volume(image, affine)
        label_map = self._segment(volume).label_map
        if affine is not None:
            return label_map
        header = headers.for_array(label_map, volume.header, volume.path)
        found = nib.Nifti1Image(
            label_map.T.astype(header.get_data_dtype()), _affine(image, volume), header
        )  # the codes stay: it fits the header
        found.header.extensions.append(label_table.extension(self.labels))
        return found

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = {"corpus": self.corpus} | {str(v): name for v, name in self.labels.items()}
        return show.table(f"Predictor of {self._predictor.name}", rows)

    def open(self, image: Any, affine: Any = None) -> Any:
        """A scan that a promptable model is asked about step by step, see `infer.session.Session`.

            session = medjax.Predictor("runs/segvol").open(nibabel.load("scan.nii.gz"))
            liver = session.segment(text="liver")
            lesion = session.segment(points=[(12.5, -30, 88)], name="lesion")
            lesion = session.click((20, -31, 80), positive=False)

        Raises: `UsageError` for a model that reads no prompts.
        """
        from medjax.infer.prompted import PromptedSegmenter
        from medjax.infer.session import Session

        if not isinstance(self._predictor, PromptedSegmenter):
            raise UsageError(
                "the model reads no prompts",
                path=self._predictor.name,
                fix="use predict, or a promptable model (docs/segvol.md)",
            )
        return Session(self._predictor, _volume(image, affine), self.request)

    def segment(self, image: Any, affine: Any = None) -> Segmentation:
        """Label map, masks per class (name -> (z, y, x) bool), uncertainty maps, changes."""
        return self._segment(_volume(image, affine))

    def probabilities(self, image: Any, affine: Any = None) -> dict[str, np.ndarray]:
        """Class name -> (z, y, x) float32 on the scan's grid.

        All classes are held in memory; `medjax predict --probabilities` does not need that.
        """
        volume = _volume(image, affine)
        found = {name: np.zeros(volume.shape, np.float32) for name in self.classes}

        def keep(transform: Any, region: Any, names: Sequence[str], values: np.ndarray) -> None:
            for channel, name in enumerate(names):
                transform.image(found[name])[region] = values[..., channel]

        self._segment(volume, keep)
        return found

    def _segment(self, volume: nifti.Volume, on_scores: Any = None) -> Segmentation:
        """Predicts; a `DataWarning` if a class is empty in a scan unlike the training scans."""
        from medjax.infer import guard

        space, request = self._predictor.model.space, self.request
        made = self._predictor.prepare_all(volume, request)
        found = self._predictor.segment(volume, request, prepared=made, on_scores=on_scores)
        channels = space.corpora[space.corpus_index(self.corpus)].channels
        for text in guard.warnings(
            found.masks.voxels, guard.doubts(self._predictor.model.plan, channels, volume, made[0])
        ):
            warnings.warn(f"{volume.path}: {text}", nifti.DataWarning, stacklevel=3)
        return found

    __call__ = predict


def predict(image: Any, model: Any, *, affine: Any = None, **options: Any) -> Any:
    """The label map of one scan. Loads and compiles on every call: use `Predictor` for many scans.

    Arguments and result: see `Predictor`.
    """
    return Predictor(model, **options).predict(image, affine)


def _check_arguments(models: Any, classes: Any) -> None:
    """`UsageError` for arguments of the wrong kind."""
    one = isinstance(models, str | Path)
    if not one and not (
        isinstance(models, Sequence) and all(isinstance(m, str | Path) for m in models)
    ):
        raise UsageError(
            "not a model",
            found=repr(models)[:80],
            expected="the path of a run folder or archive, or a list of them",
        )
    if classes is not None and (
        isinstance(classes, str)
        or not isinstance(classes, Iterable)
        or not all(isinstance(name, str) for name in classes)
    ):
        raise UsageError(
            "not a list of classes", found=repr(classes)[:80], expected='e.g. ["liver"]'
        )


def _affine(image: Any, volume: nifti.Volume) -> Any:
    """The affine of a mask: the image's own, or that of its file."""
    if hasattr(image, "affine"):
        return image.affine
    return headers.affine_of(volume.header, volume.path)


def _volume(image: Any, affine: Any) -> nifti.Volume:
    """A path, an image or an array with its affine as the volume that the file would give."""
    if isinstance(image, str | Path) and affine is None:
        return formats.read_case([image])
    if isinstance(image, np.ndarray) != (affine is not None):
        raise UsageError(
            "unusable image",
            found=type(image).__name__,
            expected="a path, a nibabel image, or an array (z, y, x[, m]) and affine=",
        )
    if affine is not None and image.ndim in (3, 4) and image.dtype.kind in "iufb":
        header = nib.Nifti1Header()
        header.set_data_shape((*image.shape[2::-1], *image.shape[3:]))
        affine = headers.check_affine(affine, "array")
        header.set_sform(affine, 1)
        header.set_qform(affine, 1, strip_shears=True)
        header.set_xyzt_units("mm")
        values, path = image, "array"
    elif affine is not None:
        raise DataError(
            "not a scan",
            path="array",
            found=f"{image.dtype} {image.shape}",
            expected="3D, or 4D with channels; real numbers",
        )
    else:
        if not hasattr(image, "dataobj") or not hasattr(image, "affine"):
            raise UsageError(
                "unusable image",
                found=type(image).__name__,
                expected="a path, a nibabel image, or an array and affine=",
            )
        like = image if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image.from_image(image)
        header, path = like.header.copy(), str(image.get_filename() or "image")
        values = np.asarray(image.dataobj)
        values = values.transpose(2, 1, 0, *range(3, values.ndim)) if values.ndim >= 3 else values
    if values.ndim not in (3, 4) or values.dtype.kind not in "iufb":
        raise DataError(
            "not a scan",
            path=path,
            found=f"{values.dtype} {values.shape}",
            expected="3D, or 4D with channels; real numbers",
        )
    values = nifti.finished(np.asarray(values, np.float32), "image", path)
    return nifti.Volume(values, headers.affine_of(header, path), header, path)
