"""Prompted prediction with a network that is known exactly: what is bright, in the box, near the
points, of the intensity of the text. Scans are stored in another orientation than the network's.
"""

import dataclasses
import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.errors import PredictError, UsageError
from medjax.infer import cases, prompted, scene, session, zoom
from medjax.infer.model import Model
from medjax.labels import Corpus, merge
from medjax.models.context import DEFAULT, Entry, union
from medjax.prepare.intensity import Intensity
from medjax.prepare.plan import Plan
from medjax.prompts import types
from medjax.prompts.read import Prompt
from medjax.prompts.request import Request
from medjax.scans import nifti

FRAME, LOW = (8, 16, 16), (4, 8, 8)
SHAPE = (8, 32, 48)  # z, y, x
CORPUS = Corpus("Body", ((1, ("liver",)), (2, ("spleen",))), channels=("MR",))
SPACE = merge([CORPUS])
PLAN = Plan({"Body": (3.0, 2.0, 1.5)}, {"MR": Intensity("window", (0.0, 100.0))}, grid="native")
LEVELS = jnp.array([0.5, 1.0])  # of liver and spleen
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, 2.0, 0, -20.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1]])
LIVER = (slice(2, 6), slice(4, 14), slice(4, 16))
SECOND = (slice(2, 6), slice(4, 14), slice(30, 41))  # as bright as the liver
SPLEEN = (slice(3, 7), slice(20, 30), slice(20, 30))


def reads(queries=3):
    leaves = types.leaves(queries, mask=LOW)
    own = {n: Entry(leaf.shape, leaf.dtype) for n, leaf in leaves.items()}
    return union(DEFAULT, own)


class Counted:
    """The network's two functions; counts how often they are traced."""

    def __init__(self):
        self.traced = []

    def encode(self, params, image, context):
        self.traced.append("encode")
        return image * params["gain"]

    def decode(self, params, embedding, context):
        self.traced.append("decode")
        has = context[types.HAS]
        x = embedding[:, None, ..., 0]
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, FRAME), indexing="ij"), -1)

        def of(v):
            return jnp.expand_dims(v, (2, 3, 4))

        level = LEVELS[jnp.maximum(context[types.TEXT], 0)]
        ok = jnp.where(of(has[..., 2]), jnp.abs(x - of(level)) < 0.15, x > 0.3)
        box = context[types.BOX]
        low, high = (part[:, :, None, None, None] for part in (box[..., :3], box[..., 3:]))
        ok &= ~of(has[..., 1]) | jnp.all((grid >= low) & (grid <= high), -1)
        away = jnp.abs(grid[..., None, :] - context[types.POINTS][:, :, None, None, None])
        for kind, radius in ((types.POSITIVE, 5), (types.NEGATIVE, 1)):
            those = (context[types.KIND] == kind) & has[..., :1]
            near = jnp.any(jnp.all(away <= radius, -1) & those[:, :, None, None, None], -1)
            ok &= (near | ~of(has[..., 0])) if kind == types.POSITIVE else ~near
        before = jnp.repeat(jnp.repeat(jnp.repeat(context[types.MASK], 2, 2), 2, 3), 2, 4)
        logits = jnp.where(ok, 2.0, -2.0) + 0.25 * before
        return {"logits": logits, "low": logits[:, :, ::2, ::2, ::2]}


def volume(path=""):
    array = np.zeros(SHAPE, np.float32)
    array[LIVER], array[SECOND], array[SPLEEN] = 50, 50, 100
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE[::-1])
    header.set_sform(AFFINE, 1)
    return nifti.Volume(array, AFFINE, header, path or "scan.nii.gz")


def truth(*parts):
    found = np.zeros(SHAPE, bool)
    for part in parts:
        found[part] = True
    return found


def made(network=None, *, plan=PLAN, **settings):
    network = network or Counted()
    methods = {"encode": network.encode, "decode": network.decode}
    model = Model(
        lambda *a: {}, {"gain": jnp.ones(())}, plan, SPACE, FRAME, reads=reads(), methods=methods
    )
    return prompted.PromptedSegmenter(model, zoom=zoom.Settings(**settings), weights=["xxh3:w"])


@pytest.fixture(scope="module")
def segmenter():
    return made(points="own")


def request(*objects):
    return Request("Body", objects=objects)


def world(zyx):
    return tuple((AFFINE @ [*zyx[::-1], 1])[:3])


def box_around(part, margin=1):
    ends = [
        world([s.start - margin for s in part]),
        world([s.stop - 1 + margin for s in part]),
    ]
    return (*np.minimum(*ends), *np.maximum(*ends))


def test_without_objects_every_class_is_asked_for_by_text(segmenter):
    found = segmenter.segment(volume(), request())
    assert tuple(found.masks) == ("liver", "spleen")
    np.testing.assert_array_equal(found.masks["liver"], truth(LIVER, SECOND))
    np.testing.assert_array_equal(found.masks["spleen"], truth(SPLEEN))
    np.testing.assert_array_equal(
        found.label_map, truth(LIVER, SECOND) * 1 + truth(SPLEEN).astype(int) * 2
    )
    assert found.corpus is None


def test_a_box_and_a_point_choose_one_of_two(segmenter):
    inside = world((4, 9, 35))
    prompts = (
        Prompt("one", text="liver", box=box_around(LIVER)),
        Prompt("two", points=(inside,), kinds=(1,)),
        Prompt("both", text="liver"),
        Prompt("spleen", text="Spleen"),
    )
    found = segmenter.segment(volume(), request(*prompts))
    np.testing.assert_array_equal(found.masks["one"], truth(LIVER))
    np.testing.assert_array_equal(found.masks["two"], truth(SECOND))
    np.testing.assert_array_equal(found.masks["both"], truth(LIVER, SECOND))
    np.testing.assert_array_equal(found.masks["spleen"], truth(SPLEEN))
    # equal logits: the first object keeps its voxels
    expected = truth(LIVER) * 1 + truth(SECOND) * 2 + truth(SPLEEN) * 4
    np.testing.assert_array_equal(found.label_map, expected)
    assert [names for _, names in found.corpus.labels] == [
        (),
        ("one",),
        ("two",),
        ("both",),
        ("spleen",),
    ]


@pytest.mark.parametrize("space", ["ras", "lps", "voxel"])
def test_three_spaces_give_one_mask(segmenter, space):
    box = np.array(box_around(LIVER))
    if space == "lps":
        box = np.array([-box[3], -box[4], box[2], -box[0], -box[1], box[5]])
    if space == "voxel":
        low, high = ([getattr(s, e) for s in LIVER[::-1]] for e in ("start", "stop"))
        box = np.array([*[v - 1 for v in low], *high])
    prompt = Prompt("one", box=tuple(map(float, box)), space=space)
    found = segmenter.segment(volume(), request(prompt))
    np.testing.assert_array_equal(found.masks["one"], truth(LIVER))


def test_zooming_finds_more_than_the_overview(segmenter):
    rough = made(zoom="out").segment(volume(), request()).masks["liver"]
    fine = segmenter.segment(volume(), request()).masks["liver"]
    true = truth(LIVER, SECOND)
    assert (fine ^ true).sum() == 0 < (rough ^ true).sum()
    assert 2 * (rough & true).sum() / (rough.sum() + true.sum()) > 0.7


def test_another_spacing_comes_back_to_the_scan():
    plan = dataclasses.replace(PLAN, spacing_mm={"Body": (3.0, 1.0, 3.0)}, grid="spacing")
    found = made(plan=plan).segment(volume(), request()).masks["spleen"]
    true = truth(SPLEEN)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.85


def test_two_programs_for_any_scans_objects_and_prompts():
    network = Counted()
    own = made(network)
    prompts = [
        Prompt("a", text="liver"),
        Prompt("b", box=box_around(LIVER)),
        Prompt("c", points=(world((4, 9, 35)), world((5, 25, 25))), kinds=(1, 0)),
        Prompt("d", text="spleen", box=box_around(SPLEEN)),
        Prompt("e", points=(world((5, 25, 25)),), kinds=(1,), box=box_around(SPLEEN)),
    ]
    for count in (1, 2, 5):
        own.segment(volume(), request(*prompts[:count]))
    other = volume()
    other = dataclasses.replace(other, array=np.ascontiguousarray(other.array[:, :20, :40]))
    other.header.set_data_shape(other.array.shape[::-1])
    own.segment(other, request())
    assert own.compiled == 2
    assert network.traced.count("decode") == 1
    assert network.traced.count("encode") == 2  # once more for the shape of the embedding


def test_t28_objects_of_one_embedding_are_as_if_asked_alone(segmenter):
    volume_ = volume()
    (prepared,) = segmenter.prepare_all(volume_, request())
    opened = segmenter.open(prepared, request())
    asked = [
        zoom.Asked(text=0),
        zoom.Asked(text=1, box=np.array([3.0, 20, 20, 6, 29, 29])),
        zoom.Asked(points=np.array([[4.0, 9, 35]]), kinds=np.array([1])),
        zoom.Asked(text=1),
    ]
    together = segmenter.prompter.find(opened, asked)
    for one, found in zip(asked, together, strict=True):
        (alone,) = segmenter.prompter.find(opened, [one])
        np.testing.assert_array_equal(alone.logits, found.logits)


def test_windows_are_encoded_once(segmenter):
    (prepared,) = segmenter.prepare_all(volume(), request())
    opened = segmenter.open(prepared, request())
    (found,) = segmenter.prompter.find(opened, [zoom.Asked(text=0)])
    assert found.windows == len(opened.windows) > 1
    held = {start: id(value) for start, value in opened.windows.items()}
    segmenter.prompter.find(opened, [zoom.Asked(text=0)])
    assert {start: id(value) for start, value in opened.windows.items()} == held


def test_what_is_not_found_is_empty_and_said(segmenter):
    empty = dataclasses.replace(volume(), array=volume().array * 0.2 + 1)
    found = segmenter.segment(empty, request(Prompt("spleen", text="spleen")))
    assert found.masks.voxels == {"spleen": 0} and not found.label_map.any()
    assert found.notes == ("nothing was found of spleen",)


def test_unusable_requests_are_refused(segmenter):
    far = Prompt("x", points=((500.0, 0, 0),), kinds=(1,))
    with pytest.raises(UsageError, match="point 1 of object 'x' lies outside"):
        segmenter.prepare_all(volume(), request(far))
    with pytest.raises(UsageError, match="did you mean spleen"):
        segmenter.check(request(Prompt("x", text="splen")))
    with pytest.raises(UsageError, match="not used together"):
        both = Prompt("x", points=(world((4, 9, 8)),), kinds=(1,), box=box_around(LIVER))
        made(both=False).segment(volume(), request(both))
    with pytest.raises(PredictError, match=r"scan.nii.gz.*too large.*--zoom out"):
        made(max_windows=2).segment(volume(), request())
    many = Prompt("x", points=(world((4, 9, 8)),) * 22, kinds=(1,) * 22)
    with pytest.raises(UsageError, match="too many points"):
        segmenter.segment(volume(), request(many))
    with pytest.raises(UsageError, match="no probabilities"):
        segmenter.segment(volume(), request(), on_scores=print)
    with pytest.raises(UsageError, match="reads no prompts"):
        plain = dataclasses.replace(segmenter.model, methods={})
        scene.Prompter(plain, segmenter._scorer, zoom.Settings())


def test_a_session_goes_on_from_what_it_found(segmenter):
    opened = session.Session(segmenter, volume(), request())
    first = opened.segment(text="liver")
    np.testing.assert_array_equal(first, truth(LIVER, SECOND))
    encoded = opened.encoded
    clicked = opened.click(world((4, 9, 10)))
    np.testing.assert_array_equal(opened.mask("liver"), clicked)
    assert encoded == opened.encoded and opened._steps["liver"][-1].found.lows
    lesion = opened.segment(points=[(*world((4, 9, 35)), 1)], name="lesion")
    np.testing.assert_array_equal(lesion, truth(SECOND))
    hole = opened.click(world((4, 9, 35)), positive=False)
    assert hole.sum() < lesion.sum() and not hole[4, 9, 35]
    np.testing.assert_array_equal(opened.undo(), lesion)
    assert set(opened.masks()) == {"liver", "lesion"}
    assert not opened.undo("lesion").any() and opened.names == ("liver",)
    with pytest.raises(UsageError, match="no object 'lesion'"):
        opened.click(world((4, 9, 35)), name="lesion")


def test_cases_with_their_own_objects_are_written_as_always(segmenter, tmp_path):
    names, scans = ("A", "B", "C"), []
    for name in names:
        path = tmp_path / f"{name}.nii.gz"
        nifti.write(path, volume().array, volume())
        scans.append(Case(name, (str(path),)))
    objects = {
        "A": (Prompt("one", box=box_around(LIVER)), Prompt("spleen", text="spleen")),
        "B": (Prompt("far", points=((500.0, 0, 0),), kinds=(1,), source="p.json, case B"),),
        "C": (Prompt("two", points=(world((4, 9, 35)),), kinds=(1,)),),
    }
    out = tmp_path / "out"
    files = cases.Files(one_file_per_class=True)
    result = cases.predict_cases(
        segmenter, scans, out, Request("Body"), files=files, objects=objects
    )
    assert result.ok == ["A", "C"] and [one["case"] for one in result.failed] == ["B"]
    assert "p.json, case B" in result.failed[0]["message"]
    found = nifti.read(out / "A.nii.gz").array
    np.testing.assert_array_equal(found, truth(LIVER) * 1 + truth(SPLEEN) * 2)
    side = json.loads((out / "A.json").read_text())
    assert side["labels"] == {"1": "one", "2": "spleen"}
    assert side["objects"][0]["name"] == "one"
    assert (out / "C" / "two.nii.gz").is_file()
    again = cases.predict_cases(
        segmenter,
        [scans[0], scans[2]],
        out,
        Request("Body"),
        files=files,
        objects=objects | {"C": objects["A"]},
        continue_=True,
    )
    assert again.skipped == ["A"] and again.ok == ["C"]
