"""`python -m polarice` is `polarice`."""

import sys


def run() -> int:
    """The command line; Ctrl-C while it loads ends it in one line, as later."""
    try:
        from polarice.cli import main
    except KeyboardInterrupt:
        print("polarice: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
