"""The guardian process: attaches to targets on behalf of the tracker, and outlives it.

Between the change of a thread's registers and their restoration nothing may happen to the tracer: the
kernel would let the thread run on with ours. Therefore the tracer is this process, not the agent: it stands
in a session of its own, ignores the signals that end an agent, finishes what it began when the agent dies,
and then leaves.

It starts fast and holds little memory: standard library only, and of the project only `inject` and
`machine`. It talks over one end of a SOCK_SEQPACKET pair. Request: int32 pid. Answer: int32 errno (0 =
done), uint64 length of the stop in ns, and why in UTF-8; the descriptor comes as SCM_RIGHTS.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import struct
from contextlib import suppress

from whimbrel.memory.inject import STOP_TIMEOUT_S, Stuck, take_userfaultfd
from whimbrel.memory.machine import Refusal

REQUEST = struct.Struct("<i")
ANSWER = struct.Struct("<iQ")


def _protect_self() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    gc.disable()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    with suppress(OSError):  # while a target stands still for us, nobody should come before us
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main(fd: int) -> None:
    _protect_self()
    with socket.socket(fileno=fd) as channel:
        while request := channel.recv(REQUEST.size):
            fds: list[int] = []
            stuck = False
            try:
                uffd, stopped_ns = take_userfaultfd(*REQUEST.unpack(request))
                fds, answer = [uffd], ANSWER.pack(0, stopped_ns)
            except Refusal as error:
                answer = ANSWER.pack(error.number, 0) + str(error).encode()
            except OSError as error:
                answer = ANSWER.pack(error.errno or errno.EIO, 0) + (error.strerror or str(error)).encode()
            except Stuck:
                stuck = True
                answer = ANSWER.pack(errno.ETIMEDOUT, 0) + f"it did not stop in {STOP_TIMEOUT_S} s".encode()
            with suppress(OSError):
                socket.send_fds(channel, [answer], fds)
            for mine in fds:
                os.close(mine)
            if stuck:
                return
