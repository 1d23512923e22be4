"""The geometry in a NIfTI header: reading and checking it, and headers of masks.

In: the bytes of a header. Out: a checked nibabel header, an affine (nibabel's: (x, y, z) voxel ->
RAS+ mm) and warnings. Pixels and files are handled by `nifti.py`; this file handles codes, shear,
and the header of a mask. Like `nifti.py` it uses nibabel's (x, y, z).
"""

import math
import warnings

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.linalg import polar

from medjax.errors import DataError
from medjax.scans.content import looks_like

UNITS = {
    1: ("metres", 1000.0),
    2: ("mm", 1.0),
    3: ("microns", 0.001),
}  # code in the lowest three bits of xyzt_units: name, mm
SPACING_MM = (0.01, 100.0)  # voxel sizes of scans, from small-animal CT to localisers
SPACING_MICRONS_FROM = 0.002  # mm: a file that says it is in microns may be finer (microscopy)
EXTENT_MM = 10_000.0  # no scan is longer than that along one axis
DATATYPES = {  # codes that are not supported grey values: name, what to do
    0: ("unknown", ""),
    1: ("1-bit", "save as uint8"),
    32: ("complex", ""),
    128: ("RGB", ""),
    1536: ("float128", "save as float32"),
    1792: ("complex", ""),
    2048: ("complex", ""),
    2304: ("RGBA", ""),
}
NUMBERS = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)  # codes of integers and floats that are read
SHEAR_SILENT, SHEAR_ERROR = 1e-4, 0.2
FORM_TOLERANCE_VOXELS = 0.1
_ROUNDING = 1e-6  # headers hold float32, so limits are met to about this


class DataWarning(UserWarning):
    """A scan that can be read but should be checked.

    Doubtful geometry, replaced values, a fallback that was used.
    """


def parse(raw: bytes, path: str) -> nib.Nifti1Header:
    """The header at the start of `raw`, unchanged (without nibabel's repairs).

    NIfTI-1 and NIfTI-2, either byte order.

    Raises: DataError for anything that is not a single-file NIfTI.
    """
    kind = {b"n+1\0": (nib.Nifti1Header, 348), b"ni1\0": (None, 348)}.get(raw[344:348])
    if kind is None and raw[4:8] == b"n+2\0":
        kind = (nib.Nifti2Header, 540)
    if (
        kind is None
        and 4 <= len(raw) < 348
        and 348 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    ):
        raise DataError(
            "truncated: shorter than a NIfTI header",
            path=path,
            found=f"{len(raw)} bytes",
            expected="348 bytes or more",
        )
    if kind is None:
        raise DataError(
            "not NIfTI",
            path=path,
            found=looks_like(raw),
            expected="a NIfTI-1 or NIfTI-2 file",
            fix="obtain the file again",
        )
    reader, size = kind
    if reader is None:
        raise DataError(
            "not NIfTI in one file: this is the header of a .hdr/.img pair",
            path=path,
            fix="convert the pair to .nii.gz",
        )
    if len(raw) < size:
        raise DataError(
            "truncated: shorter than a NIfTI header",
            path=path,
            found=f"{len(raw)} bytes",
            expected=f">= {size} bytes",
        )
    try:
        header = reader(raw[:size], check=False)
    except Exception as error:
        raise DataError(
            f"not NIfTI: broken header ({error})", path=path, fix="obtain the file again"
        ) from error
    if not 1 <= int(header["dim"][0]) <= 7 or any(
        int(n) < 1 for n in header["dim"][1 : int(header["dim"][0]) + 1]
    ):
        raise DataError(
            "broken header",
            path=path,
            found=f"dim {header['dim'].tolist()}",
            expected="1 to 7 positive sizes",
        )
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or not size <= offset < 2**62:
        raise DataError(
            "broken header",
            path=path,
            found=f"vox_offset {offset:g}",
            expected=f"{size} or more: where the voxels begin",
            fix="obtain the file again",
        )
    return header


def voxel_type(header: nib.Nifti1Header, path: str) -> np.dtype:
    """Type of the voxels as stored, in the byte order of the file.

    `DataError` naming the type if it is no grey value.
    """
    code = int(header["datatype"])
    if code not in NUMBERS:
        name, fix = DATATYPES.get(code, ("unknown", ""))
        raise DataError(
            f"{name} voxels",
            path=path,
            found=f"datatype {code}",
            expected="integers, float32 or float64",
            fix=fix or "convert to one grey value per voxel",
        )
    return header.get_data_dtype()


def scaling(header: nib.Nifti1Header, path: str) -> tuple[float, float]:
    """Slope and intercept of the voxels; 1 and 0 if the header has none.

    `DataError` for unusable values.
    """
    try:
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise DataError(
            f"unusable slope or intercept ({error})", path=path, fix="correct the header"
        ) from error
    return 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)


def unit_of(header: nib.Nifti1Header) -> tuple[str, float]:
    """Name of the header's unit of length and its size in mm; ("", 1.0) without a unit (mm)."""
    return UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))


def in_mm(affine: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Converts an affine in the header's unit to mm."""
    factor = unit_of(header)[1]
    return affine if factor == 1 else np.diag([factor, factor, factor, 1.0]) @ affine


def grid_shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    """(x, y, z) sizes; missing axes count 1."""
    shape = tuple(int(n) for n in header.get_data_shape())
    return (*shape, 1, 1, 1)[:3]


def affine_of(header: nib.Nifti1Header, path: str) -> np.ndarray:
    """(4, 4) float64 affine in mm, checked.

    From the sform if its code > 0, else the qform if its code > 0, else pixdim. Metres and microns
    (xyzt_units) are converted; a header without a unit means mm.

    Warns (DataWarning): another unit than mm; sform and qform that differ by more than 0.1 voxel at
    a corner; both codes 0; shear above 1e-4.
    Raises: DataError for NaN, zero or negative pixdim, a NaN or singular affine, a broken
      quaternion, shear of 0.2 or more, and implausible voxel sizes (see `check_spacing`).
    """
    used = min(max(int(header["dim"][0]), 1), 3)
    pixdim = np.asarray(header["pixdim"][1 : used + 1], np.float64)
    if not np.all(np.isfinite(pixdim)) or np.any(pixdim <= 0):
        raise DataError(
            "unusable voxel size",
            path=path,
            found=f"pixdim {pixdim.tolist()}",
            expected="positive mm",
            fix="correct the header",
        )
    header = header.copy()
    for axis in range(
        used + 1, 4
    ):  # a 2D image says nothing about the missing axis: 1 mm unless it does
        if not float(header["pixdim"][axis]) > 0:
            header["pixdim"][axis] = 1
    scode, qcode = int(header["sform_code"]), int(header["qform_code"])
    try:
        sform = header.get_sform() if scode > 0 else None
        qform = header.get_qform() if qcode > 0 else None
    except Exception as error:
        raise DataError(
            f"broken qform ({error})", path=path, fix="correct the header, e.g. from the sform"
        ) from error
    if sform is not None:
        affine = _two_dimensional(sform, used)
    elif qform is not None:
        affine = qform
    else:
        affine = header.get_base_affine()
        warnings.warn(
            f"{path}: neither sform nor qform is set (both codes 0); pixdim used, position unknown",
            DataWarning,
            stacklevel=3,
        )
    unit = unit_of(header)[0]
    affine = check_regular(in_mm(affine, header), path, unit=unit, shape=grid_shape(header))
    if unit not in ("", "mm"):
        warnings.warn(
            f"{path}: the header is in {unit}; converted to mm", DataWarning, stacklevel=3
        )
    elif not unit and int(header["xyzt_units"]) & 7:
        warnings.warn(
            f"{path}: unknown unit of length (code {int(header['xyzt_units']) & 7}); mm assumed",
            DataWarning,
            stacklevel=3,
        )
    qform = None if qform is None else in_mm(qform, header)
    if sform is not None and qform is not None and np.all(np.isfinite(qform)):
        distance = _corner_distance(affine, qform, grid_shape(header))
        if distance > FORM_TOLERANCE_VOXELS:
            warnings.warn(
                f"{path}: sform (code {scode}) and qform (code {qcode}) disagree by "
                f"{distance:.3g} voxels at a corner; sform used",
                DataWarning,
                stacklevel=3,
            )
    check_shear(affine, path)
    return affine


def check_affine(affine: object, path: object = "affine") -> np.ndarray:
    """A user's affine in mm as (4, 4) float64.

    Raises: `DataError` unless it holds 4 x 4 finite numbers with the last row 0 0 0 1; also if it
      is singular, sheared by 0.2 or more, or has implausible voxel sizes.
    """
    expected = "4 x 4 finite numbers, the last row 0 0 0 1: (x, y, z) voxel -> RAS+ mm"
    try:
        found = np.asarray(affine)
        found = np.asarray(found, np.float64) if found.dtype.kind in "iufbO" else None
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or found.shape != (4, 4):
        what = type(affine).__name__ if found is None else f"shape {found.shape}"
        raise DataError(
            "unusable affine",
            path=path,
            found=what,
            expected=expected,
            fix="give the affine that nibabel gives",
        )
    if not np.array_equal(found[3], [0, 0, 0, 1]):
        raise DataError(
            "unusable affine",
            path=path,
            found=f"last row {found[3].tolist()}",
            expected=expected,
            fix="correct the last row",
        )
    found = check_regular(found, path)
    check_shear(found, path)
    return found


def check_regular(
    affine: np.ndarray, path: object, *, unit: str = "", shape: tuple[int, int, int] | None = None
) -> np.ndarray:
    """The affine as (4, 4) float64.

    `DataError` if it holds NaN, is singular, or has implausible voxel sizes.

    Args:
      affine: in mm. unit: unit of the file's numbers, if given. shape: (x, y, z) of the grid, if
        known.
    """
    affine = np.asarray(affine, np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.all(np.isfinite(affine))
        or np.any(sizes <= 0)
        or abs(np.linalg.det(affine[:3, :3] / np.maximum(sizes, 1e-30))) < 1e-3
    ):
        raise DataError(
            "unusable affine (NaN or singular)",
            path=path,
            found=affine[:3].tolist(),
            fix="correct the header",
        )
    check_spacing(sizes, path, unit=unit, shape=shape)
    return affine


def check_spacing(
    sizes: np.ndarray, path: object, *, unit: str = "", shape: tuple[int, int, int] | None = None
) -> None:
    """`DataError` for implausible voxel sizes (x, y, z) in mm, e.g. metres or microns taken for mm.

    Allowed are 0.01 to 100 mm, from 0.002 mm if the file is in microns, and at most 10 m along an
    axis.
    """
    low, high = SPACING_MICRONS_FROM if unit == "microns" else SPACING_MM[0], SPACING_MM[1]
    text = " x ".join(f"{size:.4g}" for size in sizes) + " mm (x, y, z)"
    if unit in ("metres", "microns"):
        text += f", given in {unit}"
    fix = (
        "correct the voxel sizes, or their unit, in the header (NIfTI: xyzt_units 1 metre, 2 "
        "mm, 3 micron)"
    )
    if np.any(sizes < low * (1 - _ROUNDING)) or np.any(sizes > high * (1 + _ROUNDING)):
        raise DataError(
            "implausible spacing",
            path=path,
            found=text,
            expected=f"{low:g} to {high:g} mm",
            fix=fix,
        )
    if shape is not None and np.any(np.array(shape, np.float64) * sizes > EXTENT_MM):
        size = " x ".join(map(str, shape))
        raise DataError(
            "implausible spacing",
            path=path,
            found=f"{text} for {size} voxels",
            expected=f"at most {EXTENT_MM / 1000:g} m in all",
            fix=fix,
        )


def new(shape: tuple[int, ...], affine: np.ndarray, dtype: npt.DTypeLike) -> nib.Nifti1Header:
    """A NIfTI header for (z, y, x[, m]) `shape` and an affine from another format.

    sform with code 1, qform too if it can represent the affine.
    """
    header = (nib.Nifti1Header if max(shape) < 1 << 15 else nib.Nifti2Header)()
    header.set_data_shape((*shape[2::-1], *shape[3:]))
    header.set_data_dtype(np.float32 if np.dtype(dtype).kind == "f" else dtype)
    rigid = shear_of(affine) < SHEAR_SILENT
    header.set_qform(affine if rigid else nearest_rectangular(affine), 1 if rigid else 0)
    header.set_sform(affine, 1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def nearest_rectangular(
    affine: np.ndarray, shape: tuple[int, int, int] | None = None
) -> np.ndarray:
    """The affine with orthogonal axes (nearest, by polar decomposition); sizes are preserved.

    With (x, y, z) `shape` the centre is preserved too.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    fixed = np.array(affine, np.float64)
    fixed[:3, :3] = polar(affine[:3, :3] / sizes)[0] * sizes
    if shape is not None:
        centre = (np.array(shape) - 1) / 2
        fixed[:3, 3] = affine[:3, 3] + (affine[:3, :3] - fixed[:3, :3]) @ centre
    return fixed


def _two_dimensional(sform: np.ndarray, used: int) -> np.ndarray:
    """Gives an sform of a 2D image whose missing columns are zero a unit normal there."""
    sform = np.array(sform, np.float64)
    if used == 2 and not np.any(sform[:3, 2]):
        normal = np.cross(sform[:3, 0], sform[:3, 1])
        sform[:3, 2] = normal / max(np.linalg.norm(normal), 1e-30)
    return sform


def corners(shape: tuple[int, int, int]) -> np.ndarray:
    """(4, 8) homogeneous voxel coordinates of the corner voxels of an (x, y, z) grid."""
    ends = np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")
    return np.stack([*(e.ravel() for e in ends), np.ones(8)]).astype(np.float64)


def forms_disagree(header: nib.Nifti1Header, affine: np.ndarray) -> bool:
    """Whether a header has both forms and its qform differs from its sform `affine`.

    They differ if a corner moves by over 0.1 voxel.
    """
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return False
    try:
        qform = header.get_qform()
    except Exception:
        return True
    qform = in_mm(qform, header)
    return (
        bool(np.all(np.isfinite(qform)))
        and _corner_distance(affine, qform, grid_shape(header)) > FORM_TOLERANCE_VOXELS
    )


def _corner_distance(affine: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Largest distance along an axis, in voxels of `affine`, between corners of two grids."""
    points = corners(shape)
    return float(np.abs((np.linalg.inv(affine) @ other @ points - points)[:3]).max())


def shear_of(affine: np.ndarray) -> float:
    """Shear of the direction matrix: the tangent of the largest deviation from a right angle.

    The polar decomposition D = R P splits the unit axes into the nearest rotation R and a symmetric
    stretch P; the off-diagonal of P^2 holds the sines of those deviations. A shear s of one axis
    along another gives exactly s.
    """
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    stretch = polar(direction)[1]
    sine = np.abs((stretch @ stretch)[np.triu_indices(3, 1)]).max()
    return float(np.tan(np.arcsin(min(sine, 1.0))))


def check_shear(affine: np.ndarray, path: object) -> None:
    """Silent up to a shear of 1e-4, a `DataWarning` with the angle above, `DataError` from 0.2."""
    shear = shear_of(affine)
    angle = f"{np.degrees(np.arctan(shear)):.3g} degrees"
    if shear >= SHEAR_ERROR * (1 - _ROUNDING):
        raise DataError(
            "sheared voxel grid",
            path=path,
            found=f"axes {angle} from a right angle (shear {shear:.3g})",
            expected=f"below {SHEAR_ERROR}",
            fix="resample the scan to a rectangular grid (gantry tilt?)",
        )
    if shear > SHEAR_SILENT + _ROUNDING:
        warnings.warn(
            f"{path}: sheared voxel grid, axes {angle} from a right angle; treated as rectangular",
            DataWarning,
            stacklevel=4,
        )


def for_array(array: np.ndarray, like: nib.Nifti1Header, path: object) -> nib.Nifti1Header:
    """The header for writing (z, y, x[, c]) `array` on the grid of `like`.

    Geometry unchanged, type of the array, no scaling. Display window and intent of the image, and
    its extensions (they may hold patient data), are not copied.

    Raises: DataError for values that fit neither uint16 nor float32.
    """
    header = like.copy()
    header.extensions.clear()
    if array.dtype.kind in "iub":
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < 0 or high > 65535:
            raise DataError(
                "mask values out of range",
                path=path,
                found=f"{low} to {high}",
                expected="0 to 65535",
            )
        header.set_data_dtype(np.uint8 if high < 256 else np.uint16)
    elif array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        header.set_data_dtype(np.float32)
    else:
        raise DataError(
            "unwritable values",
            path=path,
            found=str(array.dtype),
            expected="bool, integers or floats",
        )
    if (
        math.prod(like.get_data_shape()) != array.size
    ):  # a 3D mask of a 4D image, or several maps on a 3D grid
        shape = (*array.shape[2::-1], *array.shape[3:])
        header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_max"], header["cal_min"], header["intent_code"] = 0, 0, 0
    return header
