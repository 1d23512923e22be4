"""`medjax import`: weights of nnU-Net, MONAI's SwinUNETR, STU-Net and others as a run folder."""

import json
from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "import", help="weights from PyTorch: medjax import WEIGHTS --family nnunet -o RUN"
    )
    p.add_argument("weights", help="checkpoint file: .pth, .pt, .model, .safetensors, .npz")
    p.add_argument(
        "--family",
        required=True,
        help="nnunet, swin_unetr, swin_unet (and M4oE), stunet, vit, segvol, ...",
    )
    p.add_argument("-o", "--output", required=True, help="run folder to create")
    p.add_argument(
        "--plan",
        default="",
        help="plan.json of a run, plans.json (nnU-Net v2) or plans.pkl (v1), if the file carries "
        "none",
    )
    p.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        help="dataset.json with channels and labels, if the file has none; one for each head",
    )
    p.add_argument("--configuration", default="3d_fullres", help="of a plans.json")
    p.add_argument("--name", default="", help="name of the corpus")
    p.add_argument(
        "--patch",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="patch z y x of the training, if the plan does not contain it",
    )
    p.add_argument(
        "--model",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="model arguments that the file does not contain, e.g. merging=fixed",
    )
    p.set_defaults(run=_import)


def _import(args) -> int:
    from medjax.runs.exchange.imported import import_weights

    optional = {
        "plan": Path(args.plan) if args.plan else None,
        "dataset": tuple(map(Path, args.dataset)),
    }
    print(
        import_weights(
            Path(args.weights),
            args.family,
            Path(args.output),
            configuration=args.configuration,
            name=args.name,
            patch=args.patch,
            model=dict(_pair(text) for text in args.model),
            **optional,
        )
    )
    return 0


def _pair(text: str) -> tuple[str, object]:
    from medjax.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError("not KEY=VALUE", found=text)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
