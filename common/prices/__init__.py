"""Prices of calls."""
