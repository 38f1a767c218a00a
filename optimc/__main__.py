"""The command `optimc`, and `python -m optimc`, which is the same.

Each command is a package in optimc/cli/, whose command.py names its options (`add_command`) and does the work
(`run`).  They share what is here: no abbreviated options; for an error that a user can put right, one line on stderr
and exit code 2; for Ctrl-C, exit code 130.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import optimc
from optimc.base.names import closest
from optimc.cli.bench import command as bench
from optimc.cli.compare import command as compare
from optimc.cli.errors import InputError

COMMANDS = (compare, bench)
#: options by the names that other programs give them
ELSEWHERE = {"--lr": "--learning-rate", "--rate": "--learning-rate", "--seed": "--seeds", "--runs": "--seeds",
             "--csv": "--data", "--column": "--target", "--bs": "--batch-size", "--units": "--hidden",
             "--output": "--out", "-o": "--out", "--overwrite": "--force", "--yes": "--force", "-y": "--force",
             "-f": "--force", "--time": "--seconds", "--shape": "--shapes"}
EXIT_CODES = "exit codes: 0 done, 2 an error that you can put right (standard error says how), 130 after Ctrl-C"


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, without argparse's usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")

    def refuse(self, words: list[str]) -> None:
        """Ends the program: these words of its command line are not understood."""
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not options:
            self.error(f"unexpected argument {words[0]!r}")
        option = options[0]
        known = [name for action in self._actions for name in action.option_strings]
        meant = ELSEWHERE.get(option)
        meant = meant if meant in known else closest(option, known)
        self.error(f"there is no option {option}" + (f": did you mean {meant}?" if meant else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code."""
    parser = Parser(prog="optimc", description="Optimizers for neural networks in C: compare them on a task, or time "
                    "their steps on this machine.", epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"optimc {optimc.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(subparsers)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        subparsers.choices.get(args.command, parser).refuse(unknown)
    if not args.command:
        parser.print_help()
        return 0
    try:
        code: int = args.run(args)
        return code
    except InputError as error:
        print(f"{parser.prog} {args.command}: error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {args.command}: interrupted", file=sys.stderr)
        return 130


def script() -> int:
    """Runs the command line of a process: the console script `optimc`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")    # a terminal that cannot show µ shows ?
    return main()


if __name__ == "__main__":
    sys.exit(script())
