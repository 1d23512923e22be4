"""The faults a data set or a run can meet, planted, and what is said of each.

Verification is tested here, for every fault at once, by what `benchmarks/faults.py` plants. Which
tests show the rest:

   1-4    damaged files            test_truncated_gzip, test_crc_mismatch_and_damaged_stream, test_not_nifti,
                                   test_shorter_than_the_header_says
   5      unreadable               test_unreadable_permissions, test_missing_broken_link_folder_pair
   6-7    odd names                test_odd_names_and_content_by_magic, test_odd_names_need_no_shell
   8-9    orientations, oblique    test_forward_then_inverse_is_identical, test_any_file_comes_back_as_it_was
  10      shear                    test_shear, test_tiny_shear_is_removed_about_the_centre
  11-12   sform, qform, codes      test_sform_before_qform_before_pixdim, test_both_codes_zero_use_pixdim, test_forms_and_codes
  13-14   image and label apart    test_same_geometry, test_label_one_slice_short_is_resampled
  15      voxel size, NaN affine   test_unusable_pixdim, test_unusable_affine
  16      anisotropy               test_anisotropic_scan_keeps_its_slices
  17      channels apart           test_channels_of_a_case, test_channels_on_different_grids
  18-19   NaN, constant            test_nonfinite_voxels_are_counted_and_placed, test_constant_image_warns_and_becomes_zero
  20-21   types                    test_values_are_nibabels, test_rgb_and_complex
  22-24   label values             test_labels_are_whole_and_not_negative, test_sparse_values_and_ignore,
                                   test_sparse_values_round_trip_and_undeclared_ones_are_named_with_counts
  25-26   nothing there            test_constant_image_and_empty_label, test_annotated_class_that_never_occurs,
                                   test_a_class_that_never_occurs_has_n_zero_and_no_nan
  27-28   2D, 4D                   test_two_dimensions_one_slice_and_frames, test_four_dimensions_are_channels
  29      smaller than the patch   test_patch_larger_than_the_volume_in_every_axis
  30      many classes             test_memory_does_not_grow_with_classes_times_volume
  31-33   kill, signal             test_a_run_killed_twice_equals_the_one_that_was_not, test_a_killed_write_leaves_the_previous_checkpoint,
                                   test_a_signal_saves_and_the_run_goes_on_later
  34      kill while preparing     test_killed_and_resumed, test_continue_trusts_complete_cases_only
  35      full disk                test_a_full_disk_is_a_clean_error_and_the_old_checkpoint_stays,
                                   test_a_full_disk_leaves_nothing_under_a_final_name
  36      a worker raises          test_any_other_failure_names_the_case_too
  37      two jobs, one store      test_two_processes_share_a_store
  38      nothing found, typos     test_nothing_found_says_what_was_searched_for, test_usage_errors_exit_2_with_a_suggestion
"""

import itertools
import os
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import faults
from medjax.corpora.verify import verify
from medjax.prepare import geometry
from medjax.scans import formats, nifti
from medjax.scans import header as headers

CLOSED_TO_ALL = os.geteuid() != 0  # to root every file is open


def test_the_table_above_names_tests_that_exist(repository):
    named = set(re.findall(r"test_[a-z0-9_]+", __doc__))
    there = {
        name
        for path in (repository / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named - there == set() and len(named) > 40


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Case -> the report of its corpus, all faults planted into synthetic scans."""
    root = tmp_path_factory.mktemp("faults")
    planted = faults.plant_all(root / "planted", faults.synthetic(root / "base"))
    found = {}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for corpus, cases in planted.items():
            report = verify(root / "planted" / corpus).to_json()
            found |= {fault: (name, report) for name, fault in cases.items()}
    assert not [
        w for w in heard if issubclass(w.category, nifti.DataWarning)
    ]  # all of them belong to the report
    return found


@pytest.mark.parametrize(
    "fault", faults.FAULTS, ids=lambda f: f"{f.number}-{f.what.replace(' ', '_')}"
)
def test_verification_says_this_and_nothing_else(reports, fault):
    if fault.number == "5b" and not CLOSED_TO_ALL:
        pytest.skip("to root every file is readable")
    case, report = reports[fault]
    good, said = faults.judge(case, fault, report)
    assert good, said


def test_every_line_names_file_and_fix(reports):
    problems = {id(r): r["problems"] for _, r in reports.values()}
    lines = [p for found in problems.values() for p in found if "constant" not in p["what"]]
    assert len(lines) > 25
    for problem in lines:
        assert (
            problem["file"]
            and problem["what"]
            and (problem["severity"] == "warning" or problem["fix"])
        ), problem


def test_the_numbers_are_complete():
    numbers = {int(re.match(r"\d+", f.number)[0]) for f in faults.FAULTS}
    assert numbers == set(range(1, 29)) and len(faults.ORIENTATIONS) == 48


ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)


def grid(orientation, spacing, degrees, shear, axis):
    """An affine with any axes, voxel sizes, rotation about any axis, and shear."""
    order, flips = orientation
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = flips
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    cross, angle = np.cross(np.eye(3), axis), np.radians(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    skew = np.eye(3)
    skew[0, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ skew * spacing
    affine[:3, 3] = 12.5, -40.25, 7
    return affine


@settings(
    max_examples=96, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(0.3, 10)] * 3),
    st.floats(-40, 40),
    st.sampled_from([0.0, 5e-5, 1e-2, 0.15]),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.1, 1)),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.sampled_from([".nii.gz", ".nii", ".mha", ".nrrd"]),
)
def test_any_file_comes_back_as_it_was(
    tmp_path, orientation, spacing, degrees, shear, axis, shape, ending
):
    """File -> volume -> canonical grid -> stored grid -> file: the same voxels at the same places,
    for any axes, angle, shear and shape.
    """
    affine = grid(orientation, spacing, degrees, shear, axis)
    array = np.random.default_rng(sum(shape)).integers(0, 5, shape).astype(np.uint8)
    array[tuple(n // 2 for n in shape)] = 3
    path = str(tmp_path / f"scan{ending}")
    if ending.startswith(".nii"):
        image = nib.Nifti1Image(array.T, affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 0 if shear else 1)
        nib.save(image, path)
    else:
        sitk = pytest.importorskip("SimpleITK")
        image, lps = sitk.GetImageFromArray(array), np.diag([-1.0, -1, 1, 1]) @ affine
        sizes = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        sitk.WriteImage(image, path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        volume = formats.read(path, "label")
    found = headers.shear_of(affine)
    assert any("sheared voxel grid" in str(w.message) for w in heard) == (
        found > headers.SHEAR_SILENT + 1e-6
    )
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, affine, rtol=1e-5, atol=1e-4)  # files hold float32
    transform = geometry.fit(volume, None, crop="nonzero")
    canonical = transform.image(volume.array)
    z, y, x = np.argwhere(canonical == 3)[0]
    world = transform.affine(volume.affine) @ (x, y, z, 1)
    k, j, i = np.argwhere(array == 3)[
        np.argmin(
            [np.linalg.norm(volume.affine @ (*p[::-1], 1) - world) for p in np.argwhere(array == 3)]
        )
    ]
    assert np.allclose(volume.affine @ (i, j, k, 1), world, atol=1e-6)  # a voxel is where it was
    nifti.write(
        tmp_path / "mask.nii.gz", transform.invert_mask(transform.label(volume.array)), volume
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = formats.read(tmp_path / "mask.nii.gz", "label")
        nifti.check_same_geometry(volume, mask)
    assert np.array_equal(mask.array, array)
    assert np.allclose(mask.affine, volume.affine, rtol=1e-6, atol=1e-4)
