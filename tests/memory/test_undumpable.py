"""What CRIU cannot save is named before anything is stopped, with the way out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from targets import program

from whimbrel.checkpoint.undumpable import mounted_from_outside, reasons, unsupported

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the descriptors of others"),
]


def named(code: str) -> str | None:
    """What is said about a program that ran `code`; skipped where the kernel forbids it the means."""
    wrapped = "try:\n" + "".join(f"    {line}\n" for line in code.strip().splitlines())
    wrapped += "except OSError as error:\n    print('cannot:', error, flush=True); time.sleep(99)\nsteps()\n"
    try:
        with program("def call(*a):\n    n = libc.syscall(*a)\n"
                     "    if n < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
                     "    return n\n" + wrapped) as child:  # fmt: skip
            return unsupported(child.pid)
    except AssertionError as error:
        if "cannot:" in str(error):
            pytest.skip(f"this kernel refuses it: {error}")
        raise


def test_io_uring() -> None:
    said = named("call(425, 8, ctypes.create_string_buffer(120))")
    assert said is not None
    assert "holds an io_uring" in said
    assert "UV_USE_IO_URING=0" in said


def test_held_userfaultfd() -> None:
    said = named("call({'x86_64': 323, 'aarch64': 282}[os.uname().machine], os.O_NONBLOCK | 1)")
    assert said is not None
    assert "holds a userfaultfd" in said


def test_perf_event() -> None:
    number = "{'x86_64': 298, 'aarch64': 241}[os.uname().machine]"
    said = named(f"b = bytearray(128); b[0] = 1; b[4] = 128; call({number}, bytes(b), 0, -1, -1, 0)")
    assert said is not None
    assert "holds a perf event" in said


def test_bpf_map() -> None:
    said = named(
        "import struct\n"
        "number = {'x86_64': 321, 'aarch64': 280}[os.uname().machine]\n"
        "call(number, 0, struct.pack('5I', 2, 4, 4, 1, 0) + bytes(100), 120)"
    )
    assert said is not None
    assert "holds a BPF map" in said


def test_a_child_is_looked_at_and_named() -> None:
    said = named(
        "if not os.fork():\n    call(425, 8, ctypes.create_string_buffer(120)); time.sleep(99)\ntime.sleep(.2)"
    )
    assert said is not None
    assert said.startswith("process ")
    assert "io_uring" in said


def test_device() -> None:
    name = next((name for name in ("/dev/kvm", "/dev/rtc0", "/dev/fuse", "/dev/loop-control", "/dev/hpet")
                 if os.path.exists(name)), None)  # fmt: skip
    if name is None:
        pytest.skip("this host has no device file to try")
    said = named(f"fd = os.open({name!r}, os.O_RDONLY)")
    assert said is not None
    assert name in said
    assert "give the container no such device" in said


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "word"),
    [
        ("socket.AF_INET", "socket.SOCK_STREAM", 262, "Multipath TCP"),
        ("40", "socket.SOCK_STREAM", 0, "VSOCK"),
    ],
)
def test_socket(family: str, kind: str, protocol: int, word: str) -> None:
    said = named(f"s = socket.socket({family}, {kind}, {protocol})")
    assert said is not None
    assert word in said


def test_traced_by_somebody() -> None:
    with program("steps()") as child:
        code = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True)"
        tracer = subprocess.Popen([sys.executable, "-c", code + "; sys.stdin.read()", str(child.pid)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert tracer.stdout is not None
        assert tracer.stdin is not None
        assert tracer.stdout.readline() == b"0\n"
        said = unsupported(child.pid)
        tracer.stdin.close()
        tracer.wait(10)
        tracer.stdout.close()
        assert said is not None
        assert f"is traced by process {tracer.pid}" in said
        assert unsupported(child.pid) is None


def test_an_ordinary_server_is_fine() -> None:
    code = """
import select, tempfile
keep = [socket.socket(f, k) for f in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
keep += [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), socket.socket(socket.AF_PACKET, 3),
         socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), select.epoll(), tempfile.TemporaryFile()]
keep += [open("/dev/" + name) for name in ("null", "zero", "full", "random", "urandom")]
keep += [os.eventfd(0), os.pidfd_open(os.getpid()), os.memfd_create("x"), *os.pipe(), *os.openpty()]
x = new(10, flags=0x21)
if not os.fork(): os._exit(0)
steps()
"""
    with program(code) as child:
        assert list(reasons(child.pid)) == []


def test_io_uring_of_which_only_the_ring_is_left() -> None:
    said = named(
        "fd = call(425, 8, ctypes.create_string_buffer(120))\n"
        "assert libc.mmap(0, P, 3, 1, fd, 0) != 2**64 - 1\n"
        "os.close(fd)"
    )
    assert said is not None
    assert "holds an io_uring" in said


@pytest.mark.parametrize(("flag", "word"), [(0x10000000, "user"), (0x20000000, "process")])
def test_namespaces_inside(flag: int, word: str) -> None:
    said = named(
        f"libc.unshare.argtypes = (ctypes.c_int,)\n"
        f"if libc.unshare({flag}): raise OSError(ctypes.get_errno(), 'unshare')\n"
        "if not os.fork(): time.sleep(99)\n"
        "time.sleep(.2)"
    )
    if flag == 0x10000000:
        assert said is None, "of the whole tree: that is the container's own"
        said = named(
            "if not os.fork():\n"
            f"    if libc.unshare({flag}): raise OSError(ctypes.get_errno(), 'unshare')\n"
            "    time.sleep(99)\n"
            "time.sleep(.3)"
        )
    assert said is not None
    assert f"a {word} namespace of its own" in said


@pytest.mark.parametrize("point", ["/srv", "/proc/tty"])
def test_something_mounted_into_a_container(point: str) -> None:
    """Below the kernel's own file systems, too. What this machine has mounted twice at one place is taken away."""
    code = (
        "assert libc.unshare(0x20000) == 0\n"
        "assert libc.mount(b'none', b'/', None, 0x44000, None) == 0\n"  # private
        "places = [line.split()[4] for line in open('/proc/self/mountinfo')]\n"
        "for place in set(places):\n"
        "    for _ in range(places.count(place) - 1): assert libc.umount2(place.encode(), 2) == 0\n"
        f"assert libc.mount(b'none', {point.encode()!r}, b'ramfs', 0, None) == 0\n"
        "steps()\n"
    )
    with program(code) as child:
        assert mounted_from_outside(child.pid, outside_of_test(child.pid, point)) == (
            f"{point} is mounted in it from outside: unmount it there first"
        )


def outside_of_test(pid: int, point: str) -> list[str]:
    """What this machine has mounted anyway."""
    with open(f"/proc/{pid}/mountinfo") as file:
        return [line.split()[4] for line in file if line.split()[4] != point]
