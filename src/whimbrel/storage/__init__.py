"""Images and writable layers on one node. Blocks; knows nothing of services, runc or the network."""
