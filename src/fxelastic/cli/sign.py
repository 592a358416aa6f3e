"""``fxelastic sign``: state who made a bundle."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from typing import Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.errors import UsageError

SCHEMA = "fxelastic.sign/1"
_DAY_S = 86_400

_DESCRIPTION = """\
Sign a bundle with a private key, so that devices can refuse bundles of others,
changed ones, and older ones. Needs the extra sign, and no torch."""

_EPILOG = """\
examples:
  fxelastic sign bundle/ --key key.pem --expires 90d
  fxelastic verify bundle/ --key key.pub

openssl makes a pair of keys:
  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout -out key.pub

exit codes: 0 success, 1 the bundle is damaged, 2 usage error"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "sign",
        help="sign a bundle, so that devices know who made it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "--key",
        metavar="FILE",
        required=True,
        help="a private ed25519 key, PEM without a password",
    )
    parser.add_argument(
        "--counter",
        metavar="N",
        type=int,
        help="a number that grows with each release: devices refuse lower ones afterwards "
        "(default: the seconds since 1970)",
    )
    parser.add_argument(
        "--expires",
        metavar="WHEN",
        help="when the signature ends: a date such as 2027-01-31 (its first second, UTC), or a "
        "number of days such as 90d (default: never)",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; raises an error on failure.
    """
    from fxelastic import edge
    from fxelastic.edge import authorship

    now_s = int(time.time())
    expires_s = None if args.expires is None else _end_s(args.expires, now_s)
    if expires_s is not None and expires_s <= now_s:
        raise UsageError(
            "--expires must be in the future: devices refuse what has expired",
            expected="a later date, or at least 1d",
            got=repr(args.expires),
        )
    bundle = edge.load(args.bundle)
    options.progress(args, f"verifying {len(bundle.files)} files")
    bundle.verify()
    found = authorship.sign(
        bundle.path,
        bundle.digest,
        args.key,
        counter=now_s if args.counter is None else args.counter,
        expires_s=expires_s,
    )
    if args.json:
        print(json.dumps({"schema": SCHEMA, "bundle": args.bundle, **found.to_json()}, indent=2))
    else:
        print(f"signed {args.bundle}: {found}")
    return 0


def _end_s(text: str, now_s: int) -> int:
    """Parse ``--expires``."""
    days = re.fullmatch(r"([0-9]{1,5})d", text)
    if days:
        return now_s + int(days[1]) * _DAY_S
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as e:
        raise UsageError(
            "--expires must be a date or a number of days",
            expected="for example 2027-01-31 or 90d",
            got=repr(text),
        ) from e
    midnight = datetime.datetime.combine(day, datetime.time(), datetime.timezone.utc)
    return max(0, int(midnight.timestamp()))
