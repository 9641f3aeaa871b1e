"""The command line: words in, one line out where something is wrong."""

import errno
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from sfd.cli import auditing, datasets, looking, measuring, running

# threads that wait must sleep: on a shared machine spinning ones collapse
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a pretrained diffusion model into a one-step generator that has forgotten a concept,"
    " and prove it.",
)

for command in (
    running.run,
    running.train,
    running.pretrain,
    running.sample,
    datasets.synthesize,
    auditing.audit,
    auditing.compare,
    running.plan,
    running.export,
    auditing.report,
    auditing.sign,
    measuring.classifier,
    measuring.calibrate,
    measuring.reference,
    looking.ls,
    looking.validate,
    looking.cite,
):
    app.command()(command)


LESS = "; ask for less at once (batch, n, size)"


def main() -> None:
    """Run the command line; the exit codes are those of the README."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        typer.main.get_command(app)()
    except ValueError as error:
        _stop(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        rest = "; free some space, the same command resumes" if full else ""
        _stop(f"{where}{error.strerror or error}{rest}", 5 if full else 2)
    except MemoryError as error:
        _stop(f"not enough memory: {_first_line(error)}{LESS}", 5)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            _stop(f"not enough memory: {_first_line(error)}{LESS}", 5)
        if "sfd.state" not in sys.modules:
            raise
        from sfd.state import Stopped, leave

        if not isinstance(error, Stopped):
            raise
        leave()
        _stop(str(error), error.code)


class _Interrupted(SystemExit):
    """The end by a signal: no guard around somebody's code takes it for theirs."""


def _interrupted(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):  # it is ending already
        signal.signal(again, signal.SIG_IGN)
    _say(f"{signal.Signals(number).name}; the same command starts again where it can")
    raise _Interrupted(128 + number)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["nothing said"])[0]


def _stop(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    print(f"sfd: {message}", file=sys.stderr, flush=True)
