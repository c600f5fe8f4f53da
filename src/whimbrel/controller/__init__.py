"""The controller: one per region, unprivileged. It knows the nodes, talks to agents, offers the HTTP API.

Rule: agents are the truth about services; what the controller keeps on disk is the record of migrations.
Nothing here touches containers, memory or the network of a node.
"""
