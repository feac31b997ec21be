"""The jobs, in their order: label, train, evaluate, report; pipeline runs all of them."""

import contextlib
import logging
import os
import signal
import sys

from common.errors import SettingsError, StoppedError

# Without a GPU, its import logs a hint about a package for faster 4-bit inference on CPUs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _end(number: int, frame: object) -> None:
    os.write(2, f"error: {StoppedError(number)}\n".encode())
    os._exit(128 + number)


if sys.argv[0] == "-m":  # python -m jobs.<job>, whose imports take seconds
    # Until `run_job` takes over, a signal ends the process at once, also as a container's PID 1.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _end)

    from common.environment import load_environment  # these, too
    from common.torch_environment import prepare_torch

    # Libraries read HF_HOME and the like on import. `load_settings` reports the error.
    with contextlib.suppress(SettingsError):
        load_environment()
    prepare_torch(os.environ)
