"""What an engine starts in place of its runtime: ``whimbrel-runtime``, and ``criu`` for LXC.

A restored container must become the child of the process that its engine watches it with (containerd's shim, conmon,
LXC's monitor). So the engine's own start command is run at the destination, and whoever it starts to make the
container *becomes* the CRIU that restores it: it makes the usual container as a placeholder, hands its socket to the
agent that waits for it, and executes what it is told. Everything else goes to the real program unchanged.

This starts with every command of the engine's, so it imports what it needs only where it needs it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

ARRIVALS = "/run/whimbrel/arrivals"  # one socket for each container that is on its way, named by its id
ARRIVAL = "WHIMBREL_ARRIVAL"  # LXC: the socket, in the environment
REAL_CRIU = "WHIMBREL_REAL_CRIU"
MARK = "whimbrel-arrival"  # in runc's folder of a container that arrives or has arrived
STDIO_BASE = 100  # the container's standard streams, as the restoring CRIU has them
_ABOVE_ALL = 512
_PR_SET_PDEATHSIG, _PR_SET_THP_DISABLE = 1, 41
_ADOPTION_S = 20.0


def main() -> NoReturn:
    """An OCI runtime (the command line of runc)."""
    arguments = sys.argv[1:]
    command, name, root = _parsed(arguments)
    if command == "create" and os.path.exists(f"{ARRIVALS}/{name}"):
        _arrive(arguments, name, root)
    if command == "start" and os.path.exists(f"{root}/{name}/{MARK}"):
        _wait_for_adoption(f"{root}/{name}/exec.fifo")
    os.execvp("runc", ["runc", *arguments])


def criu() -> NoReturn:
    """CRIU's command line as LXC uses it."""
    arguments = sys.argv[1:]
    if "restore" in arguments and ARRIVAL in os.environ:
        _become(os.environ[ARRIVAL], {"arguments": arguments})
    real = os.environ.get(REAL_CRIU, "criu")
    os.execvp(real, [real, *arguments])


def _parsed(arguments: list[str]) -> tuple[str, str, str]:
    """Command, container, and runc's root: the first word that is no option or its value, the last word, --root."""
    root, command, takes_value = "/run/runc", "", ("--root", "--log", "--log-format", "--criu", "--rootless")
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word.startswith("--root="):
            root = word.partition("=")[2]
        elif word in takes_value and position + 1 < len(arguments):
            position += 1
            if word == "--root":
                root = arguments[position]
        elif not word.startswith("-"):
            command = word
            break
        position += 1
    return command, arguments[-1] if arguments else "", root


def _arrive(arguments: list[str], name: str, root: str) -> NoReturn:
    """Make the container as a placeholder, which also runs the engine's hooks, and become the CRIU that fills it."""
    place = next((n for n, word in enumerate(arguments) if word == "--pid-file"), None)
    bundle = next((arguments[n + 1] for n, word in enumerate(arguments) if word in ("--bundle", "-b")), os.getcwd())
    pid_file = arguments[place + 1] if place is not None else ""
    waiting = os.path.join(bundle, "placeholder.pid")
    kept = arguments if place is None else arguments[:place] + arguments[place + 2 :]
    code = os.spawnvp(os.P_WAIT, "runc", ["runc", *kept[:-1], "--pid-file", waiting, name])
    if code:
        sys.exit(code if code > 0 else 1)
    with open(waiting) as file:
        placeholder = int(file.read())
    with open(f"{root}/{name}/{MARK}", "w"):
        pass
    hello = {"placeholder": placeholder, "bundle": bundle, "root": root, "pid_file": pid_file}
    _become(f"{ARRIVALS}/{name}", hello)


def _wait_for_adoption(fifo: str) -> NoReturn:
    """The container runs already; runc's record of it is put right at this very moment."""
    import time

    deadline = time.monotonic() + _ADOPTION_S
    while os.path.exists(fifo):
        if time.monotonic() > deadline:
            sys.exit("the restored container was not adopted in time")
        time.sleep(0.002)
    sys.exit(0)


def _become(path: str, hello: dict[str, object]) -> NoReturn:
    """Tell the agent that we are here, and execute what it answers. Without an answer the engine sees a failure."""
    import contextlib
    import ctypes
    import json
    import socket

    # An engine's thread may end while we wait, and would take us along; who watches over us is the agent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # why: checkpoint.huge_pages
    with contextlib.suppress(PermissionError):  # we lead our group already
        os.setsid()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
        connection.send(json.dumps(hello).encode())
        data, received, _, _ = socket.recv_fds(connection, 1 << 16, 32)
    except OSError as error:
        sys.exit(f"nobody waits for this container at {path}: {error}")
    if not data:
        sys.exit("the migration was given up")
    order = json.loads(data)
    _arrange(order["fds"], order["stderr"], list(received))
    os.chdir("/")
    os.execvp(order["argv"][0], order["argv"])


def _arrange(numbers: list[int], stderr: int, received: list[int]) -> None:
    """Put every descriptor under the number that it shall have; ours, the container's streams, above them."""
    import fcntl

    ours = [fcntl.fcntl(number, fcntl.F_DUPFD, _ABOVE_ALL) for number in range(3)]
    theirs = [fcntl.fcntl(number, fcntl.F_DUPFD, _ABOVE_ALL) for number in received]
    os.closerange(0, _ABOVE_ALL)
    null = os.open("/dev/null", os.O_RDWR)  # becomes 0, the lowest free
    os.dup2(null, 1)
    for stream, number in enumerate(ours):
        os.dup2(number, STDIO_BASE + stream)
    for target, number in zip([*numbers, stderr], theirs, strict=True):
        os.dup2(number, 2 if target == stderr else target)
    os.closerange(_ABOVE_ALL, _ABOVE_ALL + 64)


if __name__ == "__main__":
    criu() if sys.argv[1:2] == ["criu"] and sys.argv.pop(1) else main()
