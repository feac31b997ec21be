"""Benchmarks, each a command; torch is set up as the jobs do before it is imported."""

import os

from common.torch_environment import prepare_torch

prepare_torch(os.environ)
