"""`medjax import --family swin_unet` end to end: PyTorch's Swin-Unet and M4oE become run folders
that predict the same and train on.
"""

import json

import nibabel as nib
import numpy as np
import pytest

from medjax import cli, main
from medjax.errors import ModelError, UsageError
from medjax.prepare.plan import Intensity, Plan
from medjax.runs import folder as runfolder
from medjax.runs.exchange import imported
from medjax.train import checkpoint
from tests.support.raw import write_corpus

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from benchmarks.peers.torch_swin_unet import SwinUnet  # noqa: E402

SIZE = dict(
    width=8, depths=(2, 1), heads=(1, 2), window=4
)  # the smallest with a shifted window; tokens of 2 pixels, slices of 16
HEART, SARCOMA = {"atrium": 1}, {"tumour": 1, "edema": 2}
KINDS = {  # heads, the MLPs of both sides, the wrapper that the trainer left in the names
    "swin_unet": ((2,), "dense", "dense", ""),
    "gate": ((2, 3), "gate", "gate", "module.swin_unet."),
    "channel_gate": ((2, 3), "channel_gate", "channel_gate", "swin_unet."),
    "hard": ((2, 3), "hard", "dense", ""),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A corpus in MR and one in CT, as the heads are ordered, and a plan that prepares both."""
    root = tmp_path_factory.mktemp("raw")
    folders = (
        write_corpus(root / "Task01_Heart", n=3, shape=(5, 16, 16), labels=HEART),
        write_corpus(
            root / "Task02_Sarcoma", n=3, shape=(5, 16, 16), labels=SARCOMA, channels=("CT",)
        ),
    )
    ct = Intensity("ct", (-200.0, 300.0), 20.0, 80.0)
    plan = Plan({"Other": (1.0, 1.0, 1.0)}, {"MRI": Intensity("zscore"), "CT": ct})
    runfolder.write_json(root / "plan.json", plan.to_json())
    return *folders, root / "plan.json"


def _file(kind, folder):
    """(the PyTorch network, the file its trainer would save)."""
    heads, encoder, decoder, prefix = KINDS[kind]
    torch.manual_seed(3)
    peer = SwinUnet(
        heads, side=16, patch=2, encoder=encoder, decoder=decoder, experts=2, **SIZE
    ).eval()
    with torch.no_grad():
        for value in peer.parameters():
            value.add_(0.2 * torch.randn_like(value))
    path = folder / f"{kind}.pth"
    torch.save({prefix + name: value for name, value in peer.state_dict().items()}, path)
    return peer, path


def _import(raw, path, out, datasets):
    given = ["import", str(path), "--family", "swin_unet", "-o", str(out), "--plan", str(raw[-1])]
    return cli.main([*given, "--dataset", *(str(folder / "dataset.json") for folder in datasets)])


def _normalised(scan, kind):
    array = np.asarray(nib.load(scan).dataobj, np.float32).transpose(2, 1, 0)
    return (
        (np.clip(array, -200, 300) - 20) / 80
        if kind == "CT"
        else (array - array.mean()) / array.std()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_network_gives_pytorchs_label_map(kind, raw, tmp_path, capsys):
    peer, path = _file(kind, tmp_path)
    datasets = raw[: len(KINDS[kind][0])]
    run = tmp_path / "run"
    assert _import(raw, path, run, datasets) == 0
    shown = capsys.readouterr().out
    assert "predicts: medjax predict" in shown and ("experts by modality: MR, CT" in shown) == (
        kind != "swin_unet"
    )
    account = json.loads((run / "import.json").read_text())
    left = sum(map(len, account["ignored"].values()))
    assert not account["absent"] and len(account["matched"]) + left + _joined(peer) == len(
        peer.state_dict()
    )
    corpora = [corpus.name for corpus in runfolder.read_space(run).corpora]
    for head, (name, folder) in enumerate(zip(corpora, datasets, strict=True)):
        scan = folder / "imagesTr" / "case_000.nii.gz"
        asked = ["--corpus", name] if len(corpora) > 1 else []
        assert (
            cli.main(
                [
                    "predict",
                    "-m",
                    str(run),
                    "-i",
                    str(scan),
                    "-o",
                    str(tmp_path / name),
                    "--quiet",
                    "--no-html",
                    *asked,
                ]
            )
            == 0
        )
        found = np.asarray(nib.load(tmp_path / name / "case_000.nii.gz").dataobj).transpose(2, 1, 0)
        slices = torch.from_numpy(_normalised(scan, ("MR", "CT")[head]))[:, None]
        numbers = torch.full((len(slices),), head)
        with torch.no_grad():
            expected = np.stack(
                [logits.argmax(0).numpy() for logits in peer(slices, numbers, numbers)]
            )
        np.testing.assert_array_equal(found, expected)
        assert set(np.unique(expected)) == set(range(KINDS[kind][0][head])), (
            "every class somewhere, or nothing is shown"
        )


def _joined(peer):
    """How many tensors of the file share an array here: experts of a stack, heads of a kernel."""
    names = list(peer.state_dict())
    return sum(".experts." in n for n in names) // 2 + len(peer.outputs) - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin_unet", "channel_gate"])
def test_an_imported_network_trains_on(kind, raw, tmp_path, monkeypatch, repository):
    _, path = _file(kind, tmp_path)
    datasets = raw[: len(KINDS[kind][0])]
    source = tmp_path / "source"
    assert _import(raw, path, source, datasets) == 0
    monkeypatch.chdir(repository)
    flags = {
        "data.folders": ",".join(map(str, datasets)),
        "data.split.folds": 3,
        "data.workers": 1,
        "data.share": "per_corpus",
        "model.width": 8,
        "model.depths": (2, 1),
        "model.heads": (1, 2),
        "augment.on": False,
        "init.source": source,
        "init.fresh": "",
        "model.experts_in": "none" if kind == "swin_unet" else "both",
        "model.routing": "gate" if kind == "swin_unet" else kind,
        "train.patch": (16, 16),
        "train.batch": 2,
        "train.steps": 2,
        "train.validate_every": 0,
        "train.log_every": 1,
        "evaluate.on": False,
        "optim.lr": 1e-3,
    }
    line = [f"--config.{name}={value}" for name, value in flags.items()]
    assert (
        main.main(["--config=configs/m4oe.py:small", f"--workdir={tmp_path / 'run'}", *line]) == 0
    )
    transfer = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert transfer["fresh"] == ["head/bias"], "the file's heads have no bias; all else is loaded"
    assert not transfer["skipped"], "the whole network, heads and gates too"
    before, after = (checkpoint.read_params(folder) for folder in (source, tmp_path / "run"))
    moved = np.abs(after["head"]["kernel"] - before["head"]["kernel"])
    assert 0 < moved.max() < 0.01  # two steps of AdamW at 1e-3 from where the file left off
    assert np.abs(after["head"]["bias"]).max() < 0.01, "a loaded output starts at the file's 0"
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)


def test_heads_and_data_sets_must_fit(raw, tmp_path):
    _, path = _file("gate", tmp_path)
    for datasets in (raw[:1], (raw[1], raw[0])):
        with pytest.raises(ModelError, match=r"heads of \[1, 2\]"):
            imported.import_weights(
                path,
                "swin_unet",
                tmp_path / "run",
                plan=raw[-1],
                dataset=[folder / "dataset.json" for folder in datasets],
            )
    assert not (tmp_path / "run").exists()
    runfolder.write_json(
        tmp_path / "plan.json",
        Plan({"A": (1.0, 1.0, 1.0), "B": (2.0, 1.0, 1.0)}, {"CT": Intensity("zscore")}).to_json(),
    )
    with pytest.raises(
        UsageError, match="does not cover corpus 'Sarcoma'"
    ):  # of two spacings, nobody says which
        imported.import_weights(
            path,
            "swin_unet",
            tmp_path / "run",
            plan=tmp_path / "plan.json",
            dataset=raw[1] / "dataset.json",
        )
    text = imported.import_weights(path, "swin_unet", tmp_path / "bare")
    assert "cannot predict" in text and runfolder.read_space(tmp_path / "bare").known.tolist() == [
        [True, False, False],
        [False, True, True],
    ]
