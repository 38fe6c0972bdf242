"""`spot-ray VERB …`: one verb per job, a thin face on the Python API.

Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from spot_ray.errors import InstallError, SpotRayError
from spot_ray.verbs import (
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    inspect,
    label,
    occ3d,
    pretrain,
    remove,
    score,
    subset,
    synthesize,
    view,
)
from spot_ray.verbs.verb import Action, AddVerb

_VERBS: tuple[Callable[[AddVerb], None], ...] = (
    synthesize.add,
    convert.add,
    subset.add,
    remove.add,
    inspect.add,
    label.add,
    occ3d.add,
    pretrain.add,
    finetune.add,
    evaluate.add,
    score.add,
    compare.add,
    view.add,
    export.add,
    doctor.add,
    demo.add,
)
"""In the order of the help."""


class _Parser(argparse.ArgumentParser):
    """A parser whose help opens with a worked example."""

    example = ""

    def format_help(self) -> str:
        """Return the help text."""
        return (f"example:\n  {self.example}\n\n" if self.example else "") + super().format_help()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = _Parser(
        prog="spot-ray",
        description="Pre-train LiDAR encoders by occupancy prediction. A log goes in, a pre-trained encoder comes out.",
        epilog="`spot-ray VERB --help` opens with a worked example. URIs are paths, s3://… or gs://….",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def verb(
        name: str, action: Action, text: str, *, example: str, takes_fields: bool = False
    ) -> argparse.ArgumentParser:
        sub: _Parser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.example = example
        sub.set_defaults(action=action, takes_fields=takes_fields)
        return sub

    for add in _VERBS:
        add(verb)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for the user's mistakes, 130 when interrupted."""
    # Threads that spin while they wait for each other starve what runs beside them on a machine with few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_fields:
        parser.error(f"unknown arguments: {' '.join(rest)} (see spot-ray {options.verb} --help)")
    try:
        options.action(options, rest)
    except SpotRayError as error:
        _complain(f"spot-ray {options.verb}: {error}")
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "ray", "spconv", "safetensors", "tensorboard"):
            raise
        missing = InstallError(
            f"{error.name} is not installed", remedy="pip install -c constraints.txt 'spot_ray[train]'"
        )
        _complain(f"spot-ray {options.verb}: {missing}")
        return 2
    except KeyboardInterrupt:
        _complain(f"spot-ray {options.verb}: interrupted")
        return 130
    return 0


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")
