"""`spot-ray doctor`: check the installation."""

from __future__ import annotations

import argparse

from spot_ray.errors import InstallError
from spot_ray.verbs.options import say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "doctor",
        doctor,
        "Print versions and devices, and check sparse convolution against dense.",
        example="spot-ray doctor",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--recipe", metavar="NAME", help="tell parameters, shapes and FLOPs of a recipe's network too")


def doctor(options: argparse.Namespace, _: list[str]) -> None:
    """Check the installation."""
    from spot_ray.doctor import examine, render

    findings = examine(options.recipe)
    if options.json:
        from spot_ray.config.load import to_json

        say(to_json(findings))
    else:
        say(render(findings))
    if not findings.healthy:
        raise InstallError("something is not as it should be; see above")
