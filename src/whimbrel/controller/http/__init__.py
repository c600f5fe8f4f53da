"""The HTTP API: one module for each group of routes, put together by `app`. A route checks what comes in, asks a part
of the controller, and puts the answer into JSON; what it does is decided elsewhere."""
