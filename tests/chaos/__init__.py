"""Attacks on the jobs, and what has to hold after them: `make chaos`."""
