"""The only privileged code: one process per node that carries out what the controller asks."""
