"""`python -m polarice` is `polarice`."""

import os
import sys


def run() -> int:
    """The command line; Ctrl-C while it loads ends it in one line, as later, and a fault of ours in two."""
    _open_standard_streams()
    try:
        from polarice.cli import main

        return main()
    except KeyboardInterrupt:
        print("polarice: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from polarice.cli import tell_fault

        return tell_fault(sys.argv[1:], error)


def _open_standard_streams() -> None:
    """Streams that were closed (`>&-`) lead to nowhere: else the next file opened would be taken for them.

    A name that the terminal cannot show is shown with escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(run())
