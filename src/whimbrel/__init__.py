"""Whimbrel keeps a mobile user's stateful services next to the user."""

__version__ = "0.1.0"
