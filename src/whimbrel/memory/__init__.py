"""Memory of a running tree of processes: which pages it writes, and their contents.

Reads and marks pages of other processes; knows nothing of CRIU, of networks or of migrations. What it
returns are page ranges per process; nothing here decides when enough has been sent.
"""
