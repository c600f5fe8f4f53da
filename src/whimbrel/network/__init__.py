"""A node's part in the overlay: the bridge and its tunnels, service ports, holding and announcing.

Everything here acts on the network namespace of the calling thread unless a namespace is named. All
functions block and raise `model.errors`; call them from a worker thread, not from inside an event loop.
"""
