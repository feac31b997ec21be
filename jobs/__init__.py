"""The jobs, in their order: label, train, evaluate, report; pipeline runs all of them."""

import contextlib
import logging
import os
import signal
import sys

from common.environment import load_environment
from common.errors import SettingsError

# On import, where there is no GPU, it recommends a package for faster 4-bit inference on CPUs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if sys.argv[0] == "-m":  # python -m jobs.<job>: what follows are imports of many seconds
    # Stops at once and quietly, also as a container's first process; `run_job` takes over.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, lambda number, _: os._exit(128 + number))
    # Libraries read HF_HOME and the like when they are imported. `load_settings` tells the error.
    with contextlib.suppress(SettingsError):
        load_environment()
