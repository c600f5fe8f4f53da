"""Frozen values, errors and units. No I/O, no clock, no imports from the rest of the project."""
