"""`python -m optimc COMMAND`: the commands of the package.

Each command is a package in optimc/cli/, whose command.py names its options (`add_command`) and does the work
(`run`).  They share what is here: for an error that a user can put right, one line on stderr and exit
code 2; for Ctrl-C, exit code 130.
"""

import argparse
import io
import sys
from collections.abc import Sequence

import optimc
from optimc.cli.bench import command as bench
from optimc.cli.compare import command as compare
from optimc.cli.errors import InputError

COMMANDS = (compare, bench)


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, without argparse's usage above it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code."""
    parser = Parser(prog="python -m optimc", description="Optimizers for neural networks in C.")
    parser.add_argument("--version", action="version", version=f"optimc {optimc.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(subparsers)
    args = parser.parse_args(argv)
    if not args.command:
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except InputError as error:
        print(f"{parser.prog} {args.command}: error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")    # a terminal that cannot show µ shows ?
    sys.exit(main())
