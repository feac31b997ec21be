import subprocess
import sys

import pytest

SCRIPT = """
import os
from common.command import run_job
from common.errors import InputError

class Crash:
    def __del__(self):  # as a library's thread does that outlives its pool
        os.abort()

crash = Crash()

def main(settings):
    print("a line")
    {what}

run_job(main, "A job.", ())
"""


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("pass", 0, ""),
        ("raise InputError('no such file')", 3, "error: no such file\n"),
        ("open('missing')", 1, "missing"),
        ("raise ValueError('a bug')", 1, "Traceback"),
    ],
)
def test_the_exit_code_survives_a_crash_of_the_interpreters_end(tmp_path, what, code, message):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(what=what)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, "a line\n")
    assert message in done.stderr
