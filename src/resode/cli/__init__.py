"""The command line: one module a command; results on stdout, progress and errors on stderr.

Exit codes: 0 done; 2 usage or input; 3 integrity or security; 4 diverged; 5 resources; 128 + n stopped by
signal n after saving. An error is one line that names the thing and the fix; `--debug` adds the traceback.
"""

import contextlib
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from resode.cli import (
    analyze,
    bench,
    compare,
    doctor,
    evaluate,
    explain,
    export,
    import_,
    lift,
    list_,
    predict,
    regrid,
    report,
    show,
    study,
    train,
    twist,
)
from resode.cli.bars import Bars
from resode.errors import ResodeError
from resode.progress import reporting_to
from resode.training.process.signals import Interrupted, raising_interrupted


class _PlainFlags:
    """Shows a flag without the type of its value in the help: `--force`, not `--force <bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the command."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the class it is mixed into
        for each in parameters:
            if getattr(each, "is_flag", False) and each.metavar is None:
                each.metavar = ""
        return parameters


class _Command(_PlainFlags, TyperCommand):
    pass


class _Group(_PlainFlags, TyperGroup):
    pass


app = typer.Typer(
    name="resode",
    cls=_Group,
    help="Residual networks as the differential equations they discretise.",
    epilog="Add --debug to any command for a traceback. Exit codes: 0 done, 2 usage or input, 3 integrity or "
    "security, 4 diverged, 5 resources, 130/143 stopped by a signal after saving.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from resode.version import __version__

        typer.echo(__version__)
        raise typer.Exit


_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_.list_,
    "show": show.show,
    "explain": explain.explain,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "import": import_.import_,
    "lift": lift.lift,
    "regrid": regrid.regrid,
    "twist": twist.twist,
    "export": export.export,
    "analyze": analyze.analyze,
    "bench": bench.bench,
    "study": study.study,
    "compare": compare.compare,
    "report": report.report,
    "doctor": doctor.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=_Command)(_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not encode the name of a file
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        bars = Bars()
        with (
            contextlib.closing(bars),
            warnings_as_lines(),
            reporting_to(None if "--json" in words else bars),
            raising_interrupted(),
        ):
            code = app(words, standalone_mode=False)
    except Interrupted as interrupted:
        _interrupted(128 + interrupted.number, ("interrupted",), program=arguments is None)
    except BrokenPipeError:  # the reader has closed the pipe (`resode list | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, messages = _describe(error)
        if code >= 128:
            _interrupted(code, messages, program=arguments is None)
        _fail(code, messages)
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print a warning of the library as one line, without its place in the code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        from resode.cli.console import note

        note(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _describe(error: Exception) -> tuple[int, tuple[str, ...]]:
    """Exit code and message lines of an error."""
    if isinstance(error, ResodeError):
        return error.exit_code, error.messages
    usage = getattr(error, "format_message", None)  # typer's usage errors, whichever click it builds on
    if usage is not None:
        text = usage().replace("Value error, ", "").rstrip(".")  # pydantic's prefix to a wrong choice
        return 2, (f"{text} (see --help)",) if text else ()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 5, ("no space left on the device of the output",)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 2, (f"{str(error.filename)[:60]}...: the name is too long",)
    if isinstance(error, OSError) and error.errno is not None:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        return 2 if missing else 5, (f"{name}{error.strerror or error}",)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 5, ("out of memory: lower batch_size (--set batch_size=64) or choose another --device",)
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return 5, ("out of memory: lower batch_size (--set batch_size=64)",)
    first = (str(error).splitlines() or [""])[0]
    return 1, (f"internal error: {type(error).__name__}: {first}; --debug shows where",)


def _interrupted(code: int, messages: tuple[str, ...], *, program: bool) -> NoReturn:
    """End after a signal; a program at once, as the interpreter would spend seconds on leaving in order."""
    _print(code, messages)
    if program:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _fail(code: int, messages: tuple[str, ...]) -> NoReturn:
    _print(code, messages)
    sys.exit(code)


def _print(code: int, messages: tuple[str, ...]) -> None:
    rank = os.environ.get("RANK", "0")  # a signal reaches every process: rank 0 reports it for all
    if sys.stderr is None:  # closed (2>&-)
        return
    for message in messages if rank == "0" or code < 128 else ():
        with contextlib.suppress(OSError):  # a closed pipe, a full disk
            print(f"resode: {message}" if rank == "0" else f"resode: rank {rank}: {message}", file=sys.stderr)
