"""A file system that several nodes mount: its identity, its health, and root file systems on it.

A network file system can stop to answer, and then whoever touches it hangs, past any signal. So the agent never
touches it: `helper` is a process that does, and is given up when it does not come back in time. What runs there
(`marker`, `probe`, `roots`, `visible`) imports little, so that it starts quickly; `place` and `root` are
the agent's side.

On the shared file system everything is below one folder:

    whimbrel/id                     identity, random, made once
            /nodes/<node>           the last sign of life of a node that mounts it
            /services/<name>/       owner, service.json, root
            /migrations/<id>/       images of a migration (see `migrate.staging.shared`)
"""
