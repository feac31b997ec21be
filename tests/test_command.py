import json
import os
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
        ("raise MemoryError()", 2, "error: the memory does not suffice (MemoryError); give the"),
        (
            """raise RuntimeError("can't start new thread")""",
            2,
            "error: the memory does not suffice (can't start new thread); give the job more memory",
        ),
        ("raise OSError(12, 'Cannot allocate memory')", 2, "error: the memory does not suffice"),
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


def test_a_warning_about_a_call_of_ours_is_shown_and_libraries_remarks_are_not(tmp_path):
    script = """
import warnings
from common.command import run_job

def main(settings):
    for module in ("common.labels.session", "ray.data"):
        warnings.warn_explicit(f"{module} is old", DeprecationWarning, "file.py", 1, module)

run_job(main, "A job.", ())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert "DeprecationWarning: common.labels.session is old" in done.stderr
    assert "ray.data" not in done.stderr


LOG_SCRIPT = """
import logging
from common.command import run_job

def main(settings):
    log = logging.getLogger("common.anything")
    log.info("%s “rows”", 7, extra={"figures": {"rows": 7, "cost_usd": None}})
    log.warning("dry run: %s", settings.label.dry_run)
    logging.getLogger("httpx2").info("a request")

run_job(main, "A job.", ("label",), {"--dry-run": "DISTILL_LABEL__DRY_RUN"})
"""


def run_script(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def test_in_a_pod_each_line_of_the_log_is_json():
    done = run_script(LOG_SCRIPT, KUBERNETES_SERVICE_HOST="10.0.0.1")
    first, second = map(json.loads, done.stderr.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "message": "7 “rows”", "rows": 7, "cost_usd": None}
    assert (second["level"], second["message"]) == ("warning", "dry run: False")


def test_elsewhere_the_log_is_for_people():
    done = run_script(LOG_SCRIPT)
    first, second = done.stderr.splitlines()
    assert first.endswith(" 7 “rows”")
    assert second.endswith(" dry run: False")


def test_a_flag_sets_its_variable():
    assert "dry run: True" in run_script(LOG_SCRIPT, "--dry-run").stderr
    told = run_script(LOG_SCRIPT, "--help").stdout
    assert "--dry-run" in told
    assert "DISTILL_LABEL__DRY_RUN" in told


def test_an_unknown_flag_is_refused():
    done = run_script(LOG_SCRIPT, "--wet-run")
    assert done.returncode == 2


def test_a_flag_of_a_list_takes_several_names():
    script = """
from common.command import run_job

def main(settings):
    print(settings.report.compare)

run_job(main, "A job.", ("report",), {"--compare": "DISTILL_REPORT__COMPARE"})
"""
    assert run_script(script, "--compare", "one", "two").stdout == "['one', 'two']\n"
