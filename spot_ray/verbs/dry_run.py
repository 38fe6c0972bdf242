"""`--dry-run` of a verb: its flags, and how an estimate is told."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from spot_ray.errors import ConfigError

if TYPE_CHECKING:
    from spot_ray.estimate import Estimate

_PRICES = {
    "cpu_hour": "an hour of one core",
    "gpu_hour": "an hour of one GPU",
    "gb_month": "a gigabyte kept for a month",
    "1000_requests": "a thousand requests to the store",
    "gb_read": "a gigabyte read from the store",
}


def add_flags(parser: argparse.ArgumentParser, **of_verb: str) -> None:
    """Add the flags that all verbs with `--dry-run` share.

    Args:
        parser: The verb's parser.
        of_verb: By its name within `--dry-run-NAME`, help for a number over 0 that this verb alone takes.
    """
    group = parser.add_argument_group(
        "estimate", "What it would take, told from doing a small part of it on this machine. Nothing is written."
    )
    group.add_argument(
        "--dry-run", action="store_true", help="tell hours, bytes, requests, memory and costs, and do nothing else"
    )
    group.add_argument(
        "--dry-run-seconds", type=_number_over(0.0), metavar="S", help="time for measuring (default: some 30)"
    )
    for name, text in of_verb.items():
        group.add_argument(f"--dry-run-{name.replace('_', '-')}", type=_number_over(0.0), metavar="N", help=text)
    group.add_argument("--dry-run-json", metavar="FILE", help="write the estimate there, too")
    for name, text in _PRICES.items():
        group.add_argument(f"--price-{name.replace('_', '-')}", type=_price, metavar="P", help=f"price of {text}")


def is_dry(options: argparse.Namespace) -> bool:
    """Tell whether a verb is to estimate alone.

    Raises:
        ConfigError: If it is not, and is told how to; or the file of the estimate cannot be written.
    """
    if not options.dry_run:
        for name, value in vars(options).items():
            if name.startswith(("dry_run_", "price_")) and value is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is without --dry-run", expected="--dry-run beside it")
        return False
    if options.dry_run_json:
        from spot_ray.storage import uri as uris

        uris.check_writable(options.dry_run_json)
    return True


def tell(options: argparse.Namespace, estimate: Estimate) -> str:
    """Return an estimate with the prices of the flags as text, and write it where the flags say."""
    from spot_ray.config.load import to_json
    from spot_ray.estimate import Prices, priced, render
    from spot_ray.storage import uri as uris

    prices = Prices(
        cpu_hour=options.price_cpu_hour,
        gpu_hour=options.price_gpu_hour,
        gb_month=options.price_gb_month,
        requests_1000=options.price_1000_requests,
        gb_read=options.price_gb_read,
    )
    estimate = priced(estimate, prices)
    if options.dry_run_json:
        uris.write_bytes(options.dry_run_json, to_json(estimate).encode())
    return render(estimate)


def _number_over(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = _float(text)
        if not least < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number over {least:g}")
        return value

    return number


def _price(text: str) -> float:
    value = _float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a price: a number, at least 0, without a currency")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
