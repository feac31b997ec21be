"""Runs a job as a command: settings in, one clear line on failure, an exit code out."""

import argparse
import atexit
import contextlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, get_origin

from common.environment import describe_choices, describe_default, list_settings, load_settings
from common.errors import (
    DistillError,
    SettingsError,
    StoppedError,
    explain_memory,
    is_memory_error,
)
from common.settings import Settings

_FORMAT = "%(asctime)s %(message)s"
_MEMORY_ADVICE = "give the job more memory (a container: raise its limit), and run again"


def run_job(
    main: Callable[[Settings], None],
    doc: str | None,
    sections: Sequence[str],
    flags: Mapping[str, str] | None = None,
) -> NoReturn:
    """Runs `main` with the settings of the environment and exits; `--help` lists `sections`.

    `flags` are command-line flags, each with the variable that it sets: to a number or to names, if
    the setting is one or a list, else to true.
    """
    _parse_arguments(doc or "", sections, flags or {})
    _start_logging()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries about each other
        warnings.filterwarnings("default", module=r"(common|jobs)\.")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    _leave(_run(main))


def _start_logging() -> None:
    """Logs plain lines; in a pod JSON lines, for a log collector."""
    handler = logging.StreamHandler()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    handler.setFormatter(_JsonLines() if in_pod else logging.Formatter(_FORMAT, "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    for noisy in ("httpx2", "httpx", "aiobotocore", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # it lists in each training the special tokens that the model's configuration lacks
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)


class _JsonLines(logging.Formatter):
    """A record as a JSON object: time, level, message and the record's `figures`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line | getattr(record, "figures", {}), ensure_ascii=False)


def _run(main: Callable[[Settings], None]) -> int:
    """Runs `main`; gives the exit code."""
    try:
        main(load_settings())
    except (DistillError, StoppedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if is_memory_error(error):
            print(f"error: {explain_memory(error, _MEMORY_ADVICE)}", file=sys.stderr)
            return SettingsError.exit_code
        if isinstance(error, OSError):  # a disk, a store or a cluster fails
            reason = (str(error).splitlines() or [""])[0]
            print(f"error: {type(error).__name__}: {reason}; run again", file=sys.stderr)
        else:
            sys.excepthook(*sys.exc_info())
        return DistillError.exit_code
    return 0


def _leave(code: int) -> NoReturn:
    """Ends the process with this exit code.

    The interpreter's shutdown may abort in threads of torch, Arrow or Ray ("terminate called
    without an active exception"), with exit code -6.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            stream.flush()
    os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    raise StoppedError(number)


def _parse_arguments(doc: str, sections: Sequence[str], flags: Mapping[str, str]) -> None:
    rows = []
    for name, field, _ in list_settings(sections):
        default = f" [{value}]" if (value := describe_default(field)) else ""
        rows.append(f"  {name}{default}\n      {describe_choices(field)}")
    parser = argparse.ArgumentParser(
        prog=f"python -m {getattr(sys.modules['__main__'].__spec__, 'name', 'jobs')}",
        description=doc,
        epilog="environment variables [default]:\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = {name: field.annotation for name, field, _ in list_settings(sections)}
    for flag, variable in flags.items():
        form: Any = {"metavar": "N"} if kinds[variable] is int else {"action": "store_true"}
        if get_origin(kinds[variable]) is list:
            form = {"metavar": "NAME", "nargs": "+"}
        parser.add_argument(flag, dest=variable, help=f"sets {variable}", **form)
    for variable, value in vars(parser.parse_args()).items():
        if value:
            given = ",".join(value) if isinstance(value, list) else value
            os.environ[variable] = "true" if value is True else given
