import subprocess
import sys

import pytest

from whimbrel.network import udp_buffers

pytestmark = pytest.mark.real
PROGRAM = """
import socket, sys
udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0)); six.bind(("::", 0)); udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
unix = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for line in sys.stdin:
    if line == "close\\n":
        port = udp.getsockname()[1]; udp.close(); udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", port))
    print(*(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for s in (udp, six, tcp, unix[0])), flush=True)
"""


@pytest.fixture
def program():  # type: ignore[no-untyped-def]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        yield child
        child.kill()


def _sizes(child: subprocess.Popen, word: str = "") -> list[int]:  # type: ignore[type-arg]
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()
    return [int(size) for size in child.stdout.readline().split()]


def test_udp_sockets_are_widened_and_put_back(program) -> None:
    before = _sizes(program)
    undo = udp_buffers.widen([program.pid], 8 << 20)
    assert _sizes(program) == [8 << 20, 8 << 20, *before[2:]], "TCP and UNIX sockets are left alone"
    undo()
    assert _sizes(program) == before
    undo()


def test_a_wider_buffer_is_not_narrowed(program) -> None:
    before = _sizes(program)
    undo = udp_buffers.widen([program.pid], 4096)
    assert _sizes(program) == before
    undo()


def test_a_port_closed_meanwhile_is_free_and_its_successor_left_alone(program) -> None:
    _sizes(program)
    undo = udp_buffers.widen([program.pid], 8 << 20)
    after = _sizes(program, "close")  # the program binds the same port again
    undo()
    assert _sizes(program)[0] == after[0]


def test_a_vanished_process_is_passed_over(program) -> None:
    _sizes(program)
    undo = udp_buffers.widen([program.pid, 1 << 22])
    program.kill()
    program.wait()
    undo()
    assert udp_buffers.widen([program.pid])() is None
