"""Miniature downloads: for every public corpus two cases or so under the very names that were
published, written out literally.

    tree = TREES["KiTS19"]; write(tree, corpus, folder)  ->  {case name: Truth}

Volumes are (z, y, x) = (5, 9, 16), RAS, 2 x 1 x 1 mm; class k fills the k-th block of voxels. What
is not a scan or a label of the corpus (AppleDouble files, test scans, other masks, spreadsheets)
lies beside it as in the download.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.support.raw import save

SHAPE, SPACING_MM, BLOCK = (5, 9, 16), (2.0, 1.0, 1.0), 6
SEQUENCES = ("flair", "t1", "t1ce", "t2")
GREY = {
    "liver": 55,
    "right kidney": 135,
    "left kidney": 180,
    "spleen": 255,
}  # at the edges of the published ranges


@dataclasses.dataclass(frozen=True)
class Published:
    """One case: the name medjax should give it, image paths, and the label path or (mask path,
    class) pairs; folders end in /.
    """

    name: str
    images: tuple[str, ...]
    label: str = ""
    masks: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Tree:
    """A miniature download.

    Attributes:
      cases: what must be found. junk: other files, which must not. text: path -> content of files
        that matter.
      inside: class -> class that contains it. slice_name: number of a slice -> its file name
        (DICOM).
      float_label: labels are stored as float.
      flags: of the ingestion. frames: a 4D file holds the channels. head_first: file order runs
        against z.
    """

    cases: tuple[Published, ...]
    junk: tuple[str, ...] = ()
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    slice_name: Callable[[int], str] = "1-{:03d}.dcm".format
    picture_name: Callable[[int], str] = "{:03d}.png".format
    float_label: bool = False
    flags: tuple[str, ...] = ()
    head_first: bool = False
    corrupt: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a case must come out as: image (z, y, x, m), and class -> (z, y, x) bool."""

    image: np.ndarray
    masks: dict[str, np.ndarray]


def block(k: int) -> np.ndarray:
    """The k-th block of voxels, bool."""
    mask = np.zeros(int(np.prod(SHAPE)), bool)
    mask[k * BLOCK : (k + 1) * BLOCK] = True
    return mask.reshape(SHAPE)


def write(tree: Tree, corpus, folder: Path) -> dict[str, Truth]:
    """Writes the download of a corpus and says what must be found in it."""
    truths = {}
    for path in tree.junk:
        _parent(folder / path).write_bytes(b"\0\5\x16\7junk")
    for path, content in tree.text.items():
        _parent(folder / path).write_text(content)
    for i, case in enumerate(tree.cases):
        image = _image(len(corpus.channels), i)
        series = case.images[0].endswith("/")
        for c, path in enumerate(case.images):
            whole = image if len(case.images) < len(corpus.channels) else image[..., c]
            whole = whole[..., 0] if whole.shape[3:] == (1,) else whole
            _write_image(folder, path, whole, tree)
        masks = {name: np.zeros(SHAPE, bool) for name in corpus.corpus().classes}
        if case.label:
            label = np.zeros(SHAPE, np.float32 if tree.float_label else np.uint8)
            for k, (value, names) in enumerate(corpus.sets.items()):
                label[block(k)] = value
                for name in names:
                    masks[name] |= block(k)
            _write_volume(folder / case.label, label, "LPS" if series else "RAS")
        else:
            for k, (_, name) in enumerate(case.masks):
                for holder in (name, tree.inside.get(name)):
                    if holder:
                        masks[holder] |= block(k)
            _write_masks(folder, case, masks, tree, corpus)
        truths[case.name] = Truth(image, masks)
    for path in tree.corrupt:
        (folder / path).write_bytes((folder / path).read_bytes()[:100])
    return truths


def _image(channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ramps = np.meshgrid(*[np.linspace(0, 200, n) for n in SHAPE], indexing="ij")
    return (
        np.rint(
            np.stack(
                [ramps[c % 3] * (1 + c // 3) + rng.normal(100, 10, SHAPE) for c in range(channels)],
                -1,
            )
        )
        .clip(1)
        .astype(np.float32)
    )


def _write_image(folder: Path, path: str, image: np.ndarray, tree: Tree) -> None:
    if path.endswith("/"):
        write_series(folder / path, image, tree.slice_name, head_first=tree.head_first)
    elif path.endswith(".npy"):
        np.save(_parent(folder / path), image.transpose(2, 1, 0)[None].astype(np.float32))
    else:
        _write_volume(folder / path, image)


def _write_masks(
    folder: Path, case: Published, masks: Mapping[str, np.ndarray], tree: Tree, corpus
) -> None:
    first = case.masks[0][0]
    if first.endswith(".npz"):
        from scipy import sparse

        stack = np.stack([masks[name].transpose(2, 1, 0) for _, name in case.masks]).astype(
            np.int32
        )
        sparse.save_npz(_parent(folder / first), sparse.csr_matrix(stack.reshape(len(stack), -1)))
    elif corpus.name.startswith("CHAOS"):
        grey = sum(
            (255 if corpus.modality == "CT" else GREY[name]) * masks[name].astype(np.uint8)
            for _, name in case.masks
        )
        _write_pictures(folder / first, grey, tree)
    else:
        blocks: dict[str, np.ndarray] = {}
        for k, (path, name) in enumerate(case.masks):
            inner = [i for i, (_, other) in enumerate(case.masks) if tree.inside.get(other) == name]
            blocks[path] = np.logical_or.reduce(
                [blocks.get(path, np.zeros(SHAPE, bool)), block(k), *map(block, inner)]
            )
        for path, mask in blocks.items():
            if path.endswith("/"):
                write_series(
                    folder / path,
                    mask.astype(np.int16) * 255,
                    tree.slice_name,
                    head_first=tree.head_first,
                )
            else:
                _write_volume(folder / path, mask.astype(np.uint8))


def _write_volume(path: Path, array: np.ndarray, axcodes: str = "RAS") -> None:
    if path.suffix in (".nrrd", ".mhd", ".mha"):
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(array[:, ::-1, ::-1])
        image.SetSpacing(SPACING_MM[::-1])
        image.SetOrigin((-3.0, 4.0, 5.0))
        sitk.WriteImage(image, str(_parent(path)), useCompression=path.suffix == ".nrrd")
    else:
        save(path, array, SPACING_MM, axcodes, origin=(-30, -20, 10))


def write_series(
    folder: Path, array: np.ndarray, name: Callable[[int], str], *, head_first: bool = False
) -> None:
    """A DICOM series of a RAS volume, on the grid of `save(..., "LPS")`; file k is slice k, from
    the foot or the head.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    depth, rows, columns = array.shape
    for z, plane in enumerate(array[:, ::-1, ::-1]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / name(depth - 1 - z if head_first else z)
        d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        d.SeriesInstanceUID, d.StudyInstanceUID, d.Modality, d.PatientID = series, study, "CT", "p"
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = (
            rows,
            columns,
            1,
            "MONOCHROME2",
        )
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.PixelRepresentation, d.InstanceNumber = 15, 1, z + 1
        d.PixelSpacing, d.SliceThickness = [SPACING_MM[1], SPACING_MM[2]], SPACING_MM[0]
        d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        d.ImagePositionPatient = [
            30 - (columns - 1) * SPACING_MM[2],
            20 - (rows - 1) * SPACING_MM[1],
            10 + z * SPACING_MM[0],
        ]
        d.RescaleSlope, d.RescaleIntercept = 1, 0
        d.PixelData = np.ascontiguousarray(plane).astype("<i2").tobytes()
        d.save_as(path)


def _write_pictures(folder: Path, grey: np.ndarray, tree: Tree) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for z, plane in enumerate(grey[:, ::-1, ::-1]):
        Image.fromarray(np.ascontiguousarray(plane)).save(
            folder / tree.picture_name(len(grey) - 1 - z if tree.head_first else z)
        )


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _msd(folder: str, first: str, second: str) -> Tree:
    """The Decathlon's names are regular; `first` and `second` are published cases."""
    cases = tuple(
        Published(n, (f"{folder}/imagesTr/{n}.nii.gz",), f"{folder}/labelsTr/{n}.nii.gz")
        for n in (first, second)
    )
    return Tree(
        cases,
        (
            f"{folder}/imagesTr/._{first}.nii.gz",
            f"{folder}/imagesTs/{first}9.nii.gz",
            f"{folder}/dataset.json",
        ),
    )


V1 = """spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein pancreas
adrenal_gland_right adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right
lung_lower_lobe_right vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11 vertebrae_T10
vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7
vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3 vertebrae_C2 vertebrae_C1 esophagus trachea heart_myocardium heart_atrium_left
heart_ventricle_left heart_atrium_right heart_ventricle_right pulmonary_artery brain iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right small_bowel duodenum colon rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6
rib_left_7 rib_left_8 rib_left_9 rib_left_10 rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5
rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10 rib_right_11 rib_right_12 humerus_left humerus_right scapula_left
scapula_right clavicula_left clavicula_right femur_left femur_right hip_left hip_right sacrum face gluteus_maximus_left
gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left
autochthon_right iliopsoas_left iliopsoas_right urinary_bladder""".split()
V2 = """spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right esophagus trachea
thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1
vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11 vertebrae_T10 vertebrae_T9 vertebrae_T8
vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5
vertebrae_C4 vertebrae_C3 vertebrae_C2 vertebrae_C1 heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right
subclavian_artery_left common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right
atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left
femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull rib_left_1
rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 rib_left_10 rib_left_11 rib_left_12
rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10
rib_right_11 rib_right_12 sternum costal_cartilages""".split()
OARS = """A_Carotid_L A_Carotid_R Arytenoid Bone_Mandible Brainstem BuccalMucosa Cavity_Oral Cochlea_L Cochlea_R Cricopharyngeus
Esophagus_S Eye_AL Eye_AR Eye_PL Eye_PR Glnd_Lacrimal_L Glnd_Lacrimal_R Glnd_Submand_L Glnd_Submand_R Glnd_Thyroid Glottis Larynx_SG
Lips OpticChiasm OpticNrv_L OpticNrv_R Parotid_L Parotid_R Pituitary SpinalCord""".split()


def total(stems: list[str], classes: list[str], junk: tuple[str, ...] = ()) -> Tree:
    """TotalSegmentator: a folder per subject with one mask per structure; the k-th stem of the
    public class map is class k.
    """
    cases = tuple(
        Published(
            s,
            (f"{s}/ct.nii.gz",),
            masks=tuple(
                (f"{s}/segmentations/{stem}.nii.gz", c)
                for stem, c in zip(stems, classes, strict=True)
            ),
        )
        for s in ("s0000", "s0011")
    )
    return Tree(cases, ("meta.csv", *junk))


def han(classes: list[str]) -> Tree:
    """HaN-Seg: the k-th structure of the published list is class k."""
    cases = tuple(
        Published(
            c,
            (f"set_1/{c}/{c}_IMG_CT.nrrd",),
            masks=tuple(
                (f"set_1/{c}/{c}_OAR_{o}.seg.nrrd", n) for o, n in zip(OARS, classes, strict=True)
            ),
        )
        for c in ("case_01", "case_02")
    )
    return Tree(
        cases,
        (
            "set_1/case_01/case_01_IMG_MR_T1.nrrd",
            "set_1/OAR_data.csv",
            "set_1/patient_data.csv",
            "README.md",
        ),
    )


def _m3d(code: str, names: tuple[str, ...], classes: tuple[str, ...]) -> Tree:
    shape = f"({len(classes)}, 16, 9, 5)"
    cases = tuple(
        Published(
            c,
            (f"{code}/{c}/image.npy",),
            masks=tuple((f"{code}/{c}/mask_{shape}.npz", n) for n in classes),
        )
        for c in ("1", "10")
    )
    listing = {
        "name": code,
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(i + 1): n for i, n in enumerate(names)},
    }
    return Tree(cases, text={f"{code}/{code}.json": json.dumps(listing)})


def _chaos_mr(folder: str, ground: str, slice_name: str, picture_name: str) -> Tree:
    return Tree(
        tuple(
            Published(
                f"mr_{n}",
                (f"MR/{n}/{folder}/",),
                masks=tuple((f"MR/{n}/{ground}/", c) for c in GREY),
            )
            for n in ("1", "39")
        ),
        slice_name=slice_name.format,
        picture_name=picture_name.format,
    )


def _brats21(*sequences: str) -> Tree:
    folder = "BraTS2021_Training_Data"
    return Tree(
        tuple(
            Published(
                n,
                tuple(f"{folder}/{n}/{n}_{s}.nii.gz" for s in sequences),
                f"{folder}/{n}/{n}_seg.nii.gz",
            )
            for n in ("BraTS2021_00000", "BraTS2021_01666")
        ),
        ("BraTS21-17_Mapping.xlsx",),
    )


def _ircadb(*extra: tuple[str, str]) -> Tree:
    one, two = "3Dircadb1.1", "3Dircadb1.20"
    first = (
        ("liver/", "liver"),
        ("livertumor01/", "liver tumour"),
        ("livertumor02/", "liver tumour"),
        ("portalvein/", "portal and splenic vein"),
    )
    second = (("liver/", "liver"), ("leftkidney/", "left kidney"), ("spleen/", "spleen"))
    return Tree(
        (
            Published(
                one,
                (f"{one}/PATIENT_DICOM/",),
                masks=tuple((f"{one}/MASKS_DICOM/{f}", c) for f, c in first),
            ),
            Published(
                two,
                (f"{two}/PATIENT_DICOM/",),
                masks=tuple((f"{two}/MASKS_DICOM/{f}", c) for f, c in second),
            ),
        ),
        (
            f"{one}/MASKS_DICOM/skin/image_0",
            f"{one}/LABELLED_DICOM/image_0",
            f"{one}/MESHES_VTK/liver.vtk",
        ),
        inside={"liver tumour": "liver"},
        slice_name="image_{}".format,
    )


TREES: dict[str, Tree] = {
    "MSD_BrainTumour": _msd("Task01_BrainTumour", "BRATS_001", "BRATS_484"),
    "MSD_Heart": _msd("Task02_Heart", "la_003", "la_030"),
    "MSD_Liver": _msd("Task03_Liver", "liver_0", "liver_130"),
    "MSD_Hippocampus": _msd("Task04_Hippocampus", "hippocampus_001", "hippocampus_394"),
    "MSD_Prostate": _msd("Task05_Prostate", "prostate_00", "prostate_47"),
    "MSD_Lung": _msd("Task06_Lung", "lung_001", "lung_096"),
    "MSD_Pancreas": _msd("Task07_Pancreas", "pancreas_001", "pancreas_421"),
    "MSD_HepaticVessel": _msd("Task08_HepaticVessel", "hepaticvessel_001", "hepaticvessel_458"),
    "MSD_Spleen": _msd("Task09_Spleen", "spleen_2", "spleen_63"),
    "MSD_Colon": _msd("Task10_Colon", "colon_001", "colon_222"),
    "BTCV": Tree(
        (
            Published(
                "img0001",
                ("RawData/Training/img/img0001.nii.gz",),
                "RawData/Training/label/label0001.nii.gz",
            ),
            Published(
                "img0040",
                ("RawData/Training/img/img0040.nii.gz",),
                "RawData/Training/label/label0040.nii.gz",
            ),
        ),
        ("RawData/Testing/img/img0061.nii.gz",),
    ),
    "BTCV_Cervix": Tree(
        (
            Published(
                "0507688",
                ("RawData/Training/img/0507688-Image.nii.gz",),
                "RawData/Training/label/0507688-Mask.nii.gz",
            ),
            Published(
                "0759564",
                ("RawData/Training/img/0759564-Image.nii.gz",),
                "RawData/Training/label/0759564-Mask.nii.gz",
            ),
        ),
        ("RawData/Testing/img/1258230-Image.nii.gz",),
    ),
    "BTCV_TCIA": Tree(
        (
            Published(
                "img0078",
                ("image_btcv_multiorgan/img0078.nii.gz",),
                "label_btcv_multiorgan/label0078.nii.gz",
            ),
            Published(
                "PANCREAS_0002",
                ("image_tcia_multiorgan/PANCREAS_0002.nii.gz",),
                "label_tcia_multiorgan/label0002.nii.gz",
            ),
        ),
        ("cropping.csv",),
    ),
    "StructSeg19": Tree(
        (
            Published(
                "structseg_1",
                ("Task3_Thoracic_OAR/1/data.nii.gz",),
                "Task3_Thoracic_OAR/1/label.nii.gz",
            ),
            Published(
                "structseg_50",
                ("Task3_Thoracic_OAR/50/data.nii.gz",),
                "Task3_Thoracic_OAR/50/label.nii.gz",
            ),
        ),
    ),
    "SegTHOR": Tree(
        (
            Published(
                "Patient_01", ("train/Patient_01/Patient_01.nii.gz",), "train/Patient_01/GT.nii.gz"
            ),
            Published(
                "Patient_40", ("train/Patient_40/Patient_40.nii.gz",), "train/Patient_40/GT.nii.gz"
            ),
        ),
        ("test/Patient_41.nii.gz",),
    ),
    "NIH_Pancreas": Tree(
        (
            Published(
                "PANCREAS_0001",
                (
                    "Pancreas-CT/PANCREAS_0001/11-24-2015-PANCREAS0001-Pancreas-18957/Pancreas-99667/",
                ),
                "TCIA_pancreas_labels-02-05-2017/label0001.nii.gz",
            ),
            Published(
                "PANCREAS_0082",
                (
                    "Pancreas-CT/PANCREAS_0082/11-24-2015-PANCREAS0082-Pancreas-73713/Pancreas-47680/",
                ),
                "TCIA_pancreas_labels-02-05-2017/label0082.nii.gz",
            ),
        ),
        ("TCIA_pancreas_labels-02-05-2017/label0003.nii.gz", "Pancreas-CT/LICENSE"),
    ),
    "KiTS19": Tree(
        (
            Published(
                "case_00000",
                ("data/case_00000/imaging.nii.gz",),
                "data/case_00000/segmentation.nii.gz",
            ),
            Published(
                "case_00209",
                ("data/case_00209/imaging.nii.gz",),
                "data/case_00209/segmentation.nii.gz",
            ),
        ),
        ("data/case_00210/imaging.nii.gz", "data/kits.json", "LICENSE"),
    ),
    "KiTS21": Tree(
        (
            Published(
                "case_00000",
                ("kits21/data/case_00000/imaging.nii.gz",),
                "kits21/data/case_00000/aggregated_MAJ_seg.nii.gz",
            ),
            Published(
                "case_00299",
                ("kits21/data/case_00299/imaging.nii.gz",),
                "kits21/data/case_00299/aggregated_MAJ_seg.nii.gz",
            ),
        ),
        (
            "kits21/data/case_00000/aggregated_OR_seg.nii.gz",
            "kits21/data/case_00000/aggregated_AND_seg.nii.gz",
            "kits21/data/case_00000/segmentations/kidney_instance-1_annotation-1.nii.gz",
            "kits21/data/kits.json",
        ),
    ),
    "AMOS22_CT": Tree(
        (
            Published(
                "amos_0001",
                ("amos22/imagesTr/amos_0001.nii.gz",),
                "amos22/labelsTr/amos_0001.nii.gz",
            ),
            Published(
                "amos_0008",
                ("amos22/imagesVa/amos_0008.nii.gz",),
                "amos22/labelsVa/amos_0008.nii.gz",
            ),
        ),
        (
            "amos22/imagesTs/amos_0002.nii.gz",
            "amos22/dataset.json",
            "amos22/imagesTr/amos_0507.nii.gz",
            "amos22/labelsTr/amos_0507.nii.gz",
        ),
    ),
    "AMOS22_MR": Tree(
        (
            Published(
                "amos_0507",
                ("amos22/imagesTr/amos_0507.nii.gz",),
                "amos22/labelsTr/amos_0507.nii.gz",
            ),
            Published(
                "amos_0540",
                ("amos22/imagesVa/amos_0540.nii.gz",),
                "amos22/labelsVa/amos_0540.nii.gz",
            ),
        ),
        ("amos22/imagesTr/amos_0001.nii.gz", "amos22/labelsTr/amos_0001.nii.gz"),
    ),
    "FLARE22": Tree(
        (
            Published(
                "FLARE22_Tr_0001",
                ("FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz",),
                "FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz",
            ),
            Published(
                "FLARE22_Tr_0050",
                ("FLARE22_LabeledCase50/images/FLARE22_Tr_0050_0000.nii.gz",),
                "FLARE22_LabeledCase50/labels/FLARE22_Tr_0050.nii.gz",
            ),
        ),
    ),
    "ATLAS23": Tree(
        (
            Published("atlas_0", ("imagesTr/im0.nii.gz",), "labelsTr/lb0.nii.gz"),
            Published("atlas_59", ("imagesTr/im59.nii.gz",), "labelsTr/lb59.nii.gz"),
        ),
        ("dataset.json",),
    ),
    "CT_ORG": Tree(
        (
            Published("volume-0", ("volume-0.nii.gz",), "labels-0.nii.gz"),
            Published("volume-139", ("volume-139.nii.gz",), "labels-139.nii.gz"),
        ),
        ("README.txt",),
        float_label=True,
    ),
    "CHAOS_CT": Tree(
        (
            Published("ct_1", ("CT/1/DICOM_anon/",), masks=(("CT/1/Ground/", "liver"),)),
            Published("ct_30", ("CT/30/DICOM_anon/",), masks=(("CT/30/Ground/", "liver"),)),
        ),
        slice_name="i{:04d},0000b.dcm".format,
        picture_name="liver_GT_{:03d}.png".format,
        head_first=True,
    ),
    "CHAOS_T1in": _chaos_mr(
        "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground", "IMG-0004-{:05d}.dcm", "IMG-0004-{:05d}.png"
    ),
    "CHAOS_T1out": _chaos_mr(
        "T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground", "IMG-0003-{:05d}.dcm", "IMG-0004-{:05d}.png"
    ),
    "CHAOS_T2": _chaos_mr(
        "T2SPIR/DICOM_anon", "T2SPIR/Ground", "IMG-0002-{:05d}.dcm", "IMG-0002-{:05d}.png"
    ),
    "IRCADb": _ircadb(),
    "WORD": Tree(
        (
            Published("word_0001", ("imagesVal/word_0001.nii.gz",), "labelsVal/word_0001.nii.gz"),
            Published("word_0002", ("imagesTr/word_0002.nii.gz",), "labelsTr/word_0002.nii.gz"),
            Published("word_0014", ("imagesTs/word_0014.nii.gz",), "labelsTs/word_0014.nii.gz"),
        ),
        ("dataset.json",),
    ),
    "AbdomenCT_1K": Tree(
        (
            Published(
                "Case_00001",
                ("AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz",),
                "Mask/Case_00001.nii.gz",
            ),
            Published(
                "Case_01062",
                ("AbdomenCT-1K-ImagePart3/Case_01062_0000.nii.gz",),
                "Mask/Case_01062.nii.gz",
            ),
        ),
        ("AbdomenCT-1K-ImagePart2/Case_00500_0000.nii.gz",),
    ),
    "LiTS": Tree(
        (
            Published(
                "volume-0",
                ("Training Batch 1/volume-0.nii",),
                "Training Batch 1/segmentation-0.nii",
            ),
            Published(
                "volume-130",
                ("Training Batch 2/volume-130.nii",),
                "Training Batch 2/segmentation-130.nii",
            ),
        ),
    ),
    "BraTS2020": Tree(
        (
            Published(
                "BraTS20_Training_001",
                tuple(
                    f"MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_{s}.nii.gz"
                    for s in SEQUENCES
                ),
                "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz",
            ),
            Published(
                "BraTS20_Training_355",
                tuple(
                    f"MICCAI_BraTS2020_TrainingData/BraTS20_Training_355/BraTS20_Training_355_{s}.nii"
                    for s in SEQUENCES
                ),
                "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355/W39_1998.09.19_Segm.nii",
            ),
        ),
        (
            "MICCAI_BraTS2020_TrainingData/name_mapping.csv",
            "MICCAI_BraTS2020_TrainingData/survival_info.csv",
        ),
    ),
    "BraTS2021": _brats21("flair", "t1", "t1ce", "t2"),
    "BraTS2021_FLAIR": _brats21("flair"),
    "BraTS2021_T1": _brats21("t1"),
    "BraTS2021_T1ce": _brats21("t1ce"),
    "BraTS2021_T2": _brats21("t2"),
    "PROMISE12": Tree(
        (
            Published(
                "Case00", ("training_data/Case00.mhd",), "training_data/Case00_segmentation.mhd"
            ),
            Published(
                "Case49", ("training_data/Case49.mhd",), "training_data/Case49_segmentation.mhd"
            ),
        ),
    ),
    "SAML": Tree(
        (
            Published("BIDMC_Case00", ("BIDMC/Case00.nii.gz",), "BIDMC/Case00_segmentation.nii.gz"),
            Published("RUNMC_Case00", ("RUNMC/Case00.nii.gz",), "RUNMC/Case00_Segmentation.nii.gz"),
            Published("I2CVB_Case18", ("I2CVB/Case18.nii.gz",), "I2CVB/Case18_segmentation.nii.gz"),
        ),
    ),
    "T2W_Prostate": Tree(
        tuple(
            Published(
                n,
                (f"{n}/t2.nii.gz",),
                masks=(
                    (f"{n}/peripheral_zone.nii.gz", "prostate peripheral zone"),
                    (f"{n}/transition_zone.nii.gz", "prostate transition zone"),
                ),
            )
            for n in ("001", "114")
        ),
        inside={"prostate peripheral zone": "prostate", "prostate transition zone": "prostate"},
    ),
    "M3D_0000_CHAOS": _m3d(
        "0000",
        ("liver", "right kidney", "left kidney", "spleen"),
        ("liver", "right kidney", "left kidney", "spleen"),
    ),
    "M3D_0008_Pancreas_CT": _m3d("0008", ("pancreas",), ("pancreas",)),
    "M3D_0018_MSD_Colon": _m3d("0018", ("colon cancer",), ("colon cancer",)),
    "M3D_0020_MSD_Liver": _m3d("0020", ("liver", "liver tumor"), ("liver", "liver tumour")),
    "M3D_0022_MSD_Pancreas": _m3d(
        "0022", ("pancreas", "pancreas tumor"), ("pancreas", "pancreas tumour")
    ),
    "M3D_0023_MSD_Spleen": _m3d("0023", ("spleen",), ("spleen",)),
    "Breast_DCE": Tree(
        (
            Published(
                "Guangdong_1",
                ("data/Guangdong/Guangdong_1/P1.nii.gz",),
                "data/Guangdong_gt/Guangdong_1.nii.gz",
            ),
            Published(
                "Yunzhong_100",
                ("data/Yunzhong/Yunzhong_100/P1.nii.gz",),
                "data/Yunzhong_gt/Yunzhong_100.nii.gz",
            ),
        ),
        (
            "data/Guangdong/Guangdong_1/P0.nii.gz",
            "data/Guangdong/Guangdong_1/P5.nii.gz",
            "data/Guangdong_breast/Guangdong_1.nii.gz",
        ),
    ),
}


def tree_of(name: str, classes: list[str]) -> Tree:
    """The miniature download of a corpus; `classes` in the order of its published list, for those
    with one mask per structure.
    """
    if name in ("TotalSegmentator_v1", "TotalSegmentator_v2"):
        return total(V1 if name.endswith("1") else V2, classes)
    if name == "TotalSegmentator_v1_organs":
        return total(V1[:17], classes, ("s0000/segmentations/colon.nii.gz",))
    if name == "HaN_Seg":
        return han(classes)
    if name == "M3D_0001_HaN_Seg":
        return _m3d("0001", tuple(OARS), tuple(classes))
    return TREES[name]
