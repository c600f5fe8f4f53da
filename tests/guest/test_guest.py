"""What Whimbrel does on Debian's own kernel, with soft-dirty bits and control groups of version 2 alone."""

from __future__ import annotations

import json

import pytest

from tests.guest.machine import Guest

pytestmark = pytest.mark.guest

CHECK_S = 300.0
TESTS_S = 1500.0


def run_inside(guest: Guest, *selection: str, storage: str = "sshfs") -> None:
    """Run tests of this project in the guest. What they print is shown where they fail, and with `-rP`."""
    options = ["-p", "no:cacheprovider", "-rP", "-m", "", "--override-ini", "addopts=--strict-markers"]
    done = guest.run(
        ["env", f"GUEST_STORAGE={storage}", "python3", "-m", "pytest", *options, *selection], timeout_s=TESTS_S
    )
    print(done.output)
    assert done.code == 0, f"in the guest pytest ended with {done.code}: its output is above"


def test_check_says_what_is_there(guest: Guest) -> None:
    done = guest.run(["python3", "-m", "whimbrel", "check", "--json"], timeout_s=CHECK_S)
    checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
    assert done.code == 0, done.output
    assert "the kernel has it" in checks["soft-dirty"]["reason"]
    assert checks["control groups"]["status"] == checks["write tracking"]["status"] == "ok"


def test_the_layout_is_pure_v2(guest: Guest) -> None:
    mounts = guest.check(["cat", "/proc/self/mountinfo"], timeout_s=30)
    assert " - cgroup2 " in mounts
    assert " - cgroup " not in mounts


def test_migrations_on_soft_dirty_bits(guest: Guest) -> None:
    run_inside(guest, "tests/guest/inside/test_soft_dirty.py")


def test_storage_over_nfs(guest: Guest) -> None:
    run_inside(guest, "tests/guest/inside/test_nfs.py", storage="auto")


def test_control_groups_of_version_2(guest: Guest) -> None:
    adoption = "tests/runtime/test_adopt.py::test_restored_container_is_runcs_own_there_and_back"
    run_inside(guest, "tests/runtime/test_runc.py", adoption, "tests/guest/inside/test_limits.py")


def test_links_delayed_by_netem_and_capacity_on_version_2(guest: Guest) -> None:
    run_inside(
        guest, "tests/network/test_shaping.py", "tests/network/test_ping_and_nat.py", "tests/runtime/test_capacity.py"
    )
