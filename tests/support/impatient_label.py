"""The label job with less patience for actors that do not come up: a test of it takes less long."""

import runpy

from common.labels.lanes.ray import lane

if __name__ == "__main__":
    lane._WORKER_SECONDS = 12.0
    runpy.run_module("jobs.label", run_name="__main__")
