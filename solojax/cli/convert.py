"""`solojax convert`."""

from __future__ import annotations

import argparse

from solojax.cli import flags
from solojax.errors import InputError

HELP = """Checkpoints between PyTorch and here, and a proof that they give the same numbers.

A PyTorch file (.pth, .pt, .pkl, .safetensors; its layout is found out) into a checkpoint directory:

  solojax convert --checkpoint SOLOv2_R50_3x.pth --output runs/published_r50

A trained model, or the backbone of one, into a file of another system:

  solojax convert --checkpoint runs/r50 --output solov2.pth --layout mmdet-v1-solov2
  solojax convert --checkpoint runs/r50 --output r50.pkl --layout detectron2

The backbone of contrastive pre-training, or (layouts moco, densecl and mmselfsup) its encoders,
heads and queues:

  solojax convert --checkpoint runs/densecl --output densecl.pth --layout torchvision

Beside outputs that the other system recorded, stage by stage, with or without --output:

  solojax convert --checkpoint SOLOv2_R50_3x.pth --verify outputs.npz

OUTPUTS.npz holds `image` (B, H, W, 3) uint8 RGB padded to multiples of 32, `image_size` (B, 2) if
that is less, and recorded arrays by stage: input, c2 to c5, p2 to p6, category_l0 to category_l4
(logits), scores_l0 to scores_l4 (after points-NMS), and
  SOLOv2            kernels_l0 to kernels_l4, mask_features
  SOLO              masks_l0 to masks_l4 (logits of all cells), features_l0 to features_l4
  Decoupled SOLO    x_l0, y_l0 to x_l4, y_l4 (logits)
With layout="NCHW" in it they are as PyTorch has them; STAGE/shape, STAGE/idx and STAGE/val stand
for a sample of a large one. Final objects of the first image are image0/scores, image0/classes
(from 0) and image0/masks (N, height, width) at `original_size`: each must have a partner of its
class, its score within 5e-4 and its mask with an IoU of 0.995. precision="float64" computes in
double precision; with input_p2 to input_p6 the heads read that pyramid instead of the network's.

Nothing in a file is run: what is not plain weights is refused."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    flags.add_checkpoint_flag(parser, required=True)
    flags.add_step_flag(parser)
    flags.add_config_flag(parser, optional="what the checkpoint carries, or the file implies")
    parser.add_argument(
        "--output",
        metavar="DIR|FILE",
        type=flags.local_path,
        help="a folder for a checkpoint of this package, or a file: .pth, .pt, .pkl, .safetensors",
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="of an output file (default: that of the file it comes from); a wrong name lists all",
    )
    parser.add_argument(
        "--stem",
        metavar="torchvision|msra",
        help="how the file's backbone reads images, where it does not follow from the file",
    )
    parser.add_argument(
        "--verify",
        metavar="OUTPUTS.npz",
        type=flags.local_path,
        help="compare with these recorded outputs",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=1e-4,
        help="allowed difference, as a part of a stage's largest value (default 1e-4); final "
        "objects have allowances of their own",
    )


def run(args: argparse.Namespace) -> int:
    """Converts and verifies; 1 where a stage is off."""
    if args.output is None and args.verify is None:
        raise InputError("give --output DIR or FILE, --verify OUTPUTS.npz, or both")
    if args.layout is not None and args.output is None:
        raise InputError("--layout is that of an output file: give --output FILE, or drop it")

    from solojax.conversion import checkpoints

    if args.output is not None:
        checkpoints.check_target(args.output, args.layout)
    model, found = checkpoints.open_source(
        args.checkpoint, step=args.step, config=flags.config_over(args), stem=args.stem
    )
    if found is not None:
        print(f"checkpoint {found.title}")
    if model is None and (args.verify is not None or not checkpoints.is_file_name(args.output)):
        raise InputError(
            f"checkpoint {found.title}: a backbone alone makes no model; give --output FILE for "
            "another layout, or train from it with "
            f"--config.model.backbone.checkpoint={args.checkpoint}"
        )
    if args.output is not None:
        _write(args, model, found)
    return 0 if args.verify is None else _verify(args, model)


def _write(args: argparse.Namespace, model, found) -> None:
    from solojax.conversion import checkpoints

    if checkpoints.is_file_name(args.output):
        flags.make_workdir(args.output.parent, "--output")
        layout = checkpoints.write_file(args.output, args.layout, model, found)
        print(f"{args.output}: {layout.title}")
    else:
        written = checkpoints.write_checkpoint(args.output, model)
        print(f"{written}: {len(model.categories)} classes")


def _verify(args: argparse.Namespace, model) -> int:
    from solojax.conversion.verification import verify
    from solojax.interop.parity import report_table

    reports = verify(model.task, model.variables, args.verify, args.tolerance)
    print(report_table(reports))
    failed = [report.stage for report in reports if not report.passed]
    print(f"{len(reports) - len(failed)} of {len(reports)} stages within {args.tolerance:g}")
    return 1 if failed else 0
