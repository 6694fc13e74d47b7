"""`sdsedit batch` alone, as `sdsedit.cli` runs it: for tests, in this process or as a process of its own."""

from __future__ import annotations

import argparse
import sys
import warnings

from sdsedit import cli, cli_batch, errors


def main(argv: list[str]) -> int:
    if argv[:2] == ["batch", "status"]:
        argv = ["batch status", *argv[2:]]
    parser = cli._Parser(prog="sdsedit", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    cli_batch.add_to(command)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else errors.USAGE
    with cli.Interrupts() as interrupts, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return arguments.run(arguments, interrupts)
        except cli.Interrupted:
            return interrupts.exit_code
        except Exception as error:
            return cli._refuse(*cli._outcome(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
