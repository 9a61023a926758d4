"""`solojax prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from solojax.cli import flags
from solojax.errors import InputError

_INSTANCE_KINDS = ("coco", "lvis")
_SPLIT_KINDS = {"image-split": "images", "mask-split": "masks"}
_KINDS = (*_INSTANCE_KINDS, "folder", "imagenet", *_SPLIT_KINDS)

HELP = """A data set as sharded records (a few large files, read in any order), or a part of one.

COCO or LVIS json with its images; LVIS' file names are those of its URLs (train2017/...):

  solojax prepare coco --annotations instances_train2017.json --images train2017/ \\
      --split train --output records/coco
  solojax prepare lvis --annotations lvis_v1_train.json --images coco/ --output records/lvis

Images alone, in class folders or without classes:

  solojax prepare imagenet --images ILSVRC/Data/CLS-LOC/train --output records/imagenet
  solojax prepare folder --images photos/ --output records/photos

Every split is a command of its own; all go into one folder. A command that was stopped goes on when
it is given again, and the files are the same bytes. Train on them by

  solojax train ... --config.data.format=records --config.data.root=records/coco

Hash what was written, and hold it against the checksums in SPLIT.manifest.json:

  solojax prepare coco --verify --output records/coco

For learning with few labels, a json with a part of another's images, or one whose objects all have
their class while a part alone has a mask to learn from. The same ids are chosen for everybody, by
--seed; the smaller part lies in the larger one:

  solojax prepare image-split --fraction 0.1 --annotations instances_train2017.json \\
      --output instances_train2017_images10.json
  solojax prepare mask-split --fraction 0.05 --annotations instances_train2017.json \\
      --output instances_train2017_masks5.json

TensorFlow is not needed, to write or to read; TFDS opens the folder
(tfds.builder_from_directory)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument("what", choices=_KINDS, help="what the source is")
    parser.add_argument(
        "--annotations", metavar="FILE.json", type=flags.local_path, help="COCO or LVIS json"
    )
    parser.add_argument(
        "--images", metavar="DIR", type=flags.local_path, help="folder of the image files"
    )
    parser.add_argument(
        "--output",
        metavar="DIR|FILE.json",
        required=True,
        help="folder of the records, or gs://BUCKET/... (pip install 'solojax[gcs]'); of a split, "
        "its json",
    )
    parser.add_argument("--split", metavar="NAME", help="train, val, ... (default: train)")
    parser.add_argument(
        "--shards", metavar="N", type=int, help="number of files (default: by the size of the data)"
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out images whose file does not exist"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin the split anew, whatever is there of it"
    )
    parser.add_argument(
        "--verify", action="store_true", help="write nothing: hash what is there, of all splits"
    )
    parser.add_argument(
        "--fraction", metavar="X", type=flags.probability, help="of a split, such as 0.05"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of a split's choice (default 0)")


def run(args: argparse.Namespace) -> int:
    """Writes or verifies."""
    _check_flags(args)
    if args.what in _SPLIT_KINDS:
        return _write_split(args)
    if args.verify:
        from solojax.conversion.preparation import verify

        for split, size in verify(args.output, args.split, args.what).items():
            print(f"{args.output}: {split} is as it was written, {size / 1e6:.1f} MB")
        return 0
    if "://" not in args.output:
        flags.make_workdir(Path(args.output), "--output")
    split = args.split or "train"
    written = _write(args, split)
    manifest = written.manifest
    size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    was_there = f" ({written.num_kept} were there)" if written.num_kept else ""
    print(
        f"{args.output}: {split} has {manifest.num_examples} images, "
        f"{len(manifest.categories)} classes in {len(manifest.shards)} shards{was_there}, "
        f"{size:.1f} MB, checksum {manifest.checksum[:16]}"
    )
    return 0


def _write_split(args: argparse.Namespace) -> int:
    from solojax.data.splits import write_split

    if "://" in args.output:
        raise InputError(
            f"--output {args.output}: the json of a split is written to a file system alone: give "
            "a local path and copy it afterwards"
        )
    output = Path(args.output)
    flags.check_output_file(output, "--output")
    kind = _SPLIT_KINDS[args.what]
    split = write_split(args.annotations, output, kind, args.fraction, args.seed or 0)
    print(
        f"{output}: {split.chosen} of {split.of} {split.kind}, seed {split.seed}, "
        f"sha256 of their ids {split.sha256}"
    )
    return 0


def _write(args: argparse.Namespace, split: str):
    from solojax.conversion.preparation import prepare_instances, prepare_labelled

    if args.what in _INSTANCE_KINDS:
        return prepare_instances(
            args.what,
            args.annotations,
            args.images,
            args.output,
            split,
            num_shards=args.shards,
            skip_missing=args.skip_missing,
            overwrite=args.overwrite,
        )
    return prepare_labelled(
        args.what,
        args.images,
        args.output,
        split,
        num_shards=args.shards,
        overwrite=args.overwrite,
    )


def _check_flags(args: argparse.Namespace) -> None:
    """Refuses flags that are missing, or that would have no part in the work."""
    given = {
        "--annotations": args.annotations is not None,
        "--images": args.images is not None,
        "--shards": args.shards is not None,
        "--skip-missing": args.skip_missing,
        "--overwrite": args.overwrite,
        "--split": args.split is not None,
        "--verify": args.verify,
        "--fraction": args.fraction is not None,
        "--seed": args.seed is not None,
    }
    of_splits = ("--fraction", "--seed")
    if args.what in _SPLIT_KINDS:
        needed = ("--annotations", "--fraction")
        useless = tuple(flag for flag in given if flag not in (*needed, *of_splits))
    elif args.verify:
        needed, useless = (), tuple(flag for flag in given if flag not in ("--verify", "--split"))
    elif args.what in _INSTANCE_KINDS:
        needed, useless = ("--annotations", "--images"), of_splits
    else:
        needed, useless = ("--images",), ("--annotations", "--skip-missing", *of_splits)
    missing = [flag for flag in needed if not given[flag]]
    if missing:
        raise InputError(f"prepare {args.what} needs {' and '.join(missing)} too: give it")
    found = [flag for flag in useless if given[flag]]
    if found:
        verifying = args.verify and args.what not in _SPLIT_KINDS
        work = "--verify" if verifying else f"prepare {args.what}"
        raise InputError(f"{', '.join(found)} has no part in {work}: leave it out")
