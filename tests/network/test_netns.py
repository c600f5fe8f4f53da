import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from whimbrel.model.errors import Conflict, Refused
from whimbrel.network import netns

pytestmark = pytest.mark.real


def _here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@pytest.fixture
def namespace(tmp_path: Path):  # type: ignore[no-untyped-def]
    path = tmp_path / "ns"
    netns.create(path)
    yield path
    netns.remove(path)


def test_a_call_runs_inside_and_the_caller_stays_outside(namespace: Path) -> None:
    outside = _here()
    assert netns.call(namespace, _here) == f"net:[{netns.inode(namespace)}]" != outside
    assert _here() == outside
    assert netns.call(namespace, socket.if_nameindex) == [(1, "lo")]


def test_an_error_inside_reaches_the_caller(namespace: Path) -> None:
    def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        netns.call(namespace, fail)


def test_a_block_inside_comes_back_even_after_an_error(namespace: Path) -> None:
    outside = _here()
    with netns.entered(namespace):
        assert _here() != outside
    with pytest.raises(ValueError), netns.entered(namespace):
        raise ValueError
    assert _here() == outside


def test_a_worker_stays_inside(namespace: Path) -> None:
    worker = netns.Worker(namespace)
    assert worker(_here) == worker(_here) != _here()
    worker.close()


def test_making_twice_is_refused_and_removing_twice_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ns"
    netns.create(path)
    with pytest.raises(Conflict, match="exists already"):
        netns.create(path)
    netns.remove(path)
    netns.remove(path)
    assert not path.exists()
    with pytest.raises(Refused, match="no network namespace"):
        netns.call(path, _here)


def test_settings_are_the_namespaces_own(namespace: Path) -> None:
    before = netns.read_sysctl("net/ipv4/ip_forward")
    netns.call(namespace, lambda: netns.write_sysctl("net/ipv4/ip_forward", 1 - int(before)))
    assert netns.read_sysctl("net/ipv4/ip_forward") == before
    with pytest.raises(Refused, match="no/such"):
        netns.write_sysctl("net/no/such", 1)


def test_who_names_a_namespace_first_does_not_matter() -> None:
    """On a machine where nobody has used `ip netns` yet, which is played by mounts of one's own."""
    code = """
import os, subprocess
from whimbrel.network import netns
path = netns.NAMED_DIR / f"whimbrel-test-{os.getpid()}"
other = f"whimbrel-test-{os.getpid()}-other"
netns.create(path)
subprocess.run(["ip", "netns", "add", other], check=True)
with open("/proc/self/mountinfo") as file:
    assert sum(line.split()[4] == str(path) for line in file) == 1
netns.remove(path)
subprocess.run(["ip", "netns", "delete", other], check=True)
assert not path.exists()
"""
    fresh = 'mount -t tmpfs none /run && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", fresh, "sh", sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
