"""Containers of one node: what they are, runc, their control groups and their output."""
