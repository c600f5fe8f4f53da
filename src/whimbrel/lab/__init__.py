"""A whole region on one Linux host: real agents and a real controller in network namespaces.

The lab starts the same processes that run on real machines, and only reads and removes what it made itself.
"""

from whimbrel.lab.commands import LabNode, LabStatus, lab_down, lab_status, lab_up, run_in

__all__ = ["LabNode", "LabStatus", "lab_down", "lab_status", "lab_up", "run_in"]
