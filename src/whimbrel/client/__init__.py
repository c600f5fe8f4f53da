"""The user's side: clients that talk to a service and measure, from outside, what a migration does to it.

A client runs in a process of its own, in the user's place, with the standard library only: nothing here imports
another package of Whimbrel, but for `report`, which is for whoever starts a client and reads what it says.
"""
