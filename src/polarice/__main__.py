"""`python -m polarice` is `polarice`."""

import io
import os
import sys
from typing import Any


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
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


class _Lasting(io.TextIOWrapper):
    """A stream that is silent once its reader has gone away (`| head -1`): the job goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            return self._silence() or len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> int:
        """What is still to be written goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()
        return 0


def _lasting(stream: Any, number: int) -> Any:
    """The standard stream as one that outlives its reader; None, of a stream that was closed, as one to nowhere.

    Lines are written at once, so that a batch job's log can be followed.
    """
    if stream is None:
        return _Lasting(io.FileIO(number, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    if type(stream) is not io.TextIOWrapper:
        return stream
    encoding = stream.encoding
    return _Lasting(stream.detach(), encoding, "backslashreplace", line_buffering=True)


if __name__ == "__main__":
    sys.exit(run())
