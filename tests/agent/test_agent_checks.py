from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from whimbrel.agent import checks
from whimbrel.agent.checks import Check, Status, run_checks
from whimbrel.cli.main import run
from whimbrel.model.errors import WhimbrelError

NAMES = [
    "root", "kernel", "write tracking", "soft-dirty", "CRIU", "lazy restore", "runc", "skopeo", "umoci",
    "rsync", "nft", "network links", "link delay", "overlayfs", "control groups", "/dev/shm",
    "Docker", "Podman", "LXC",
]  # fmt: skip


def by_name() -> dict[str, Check]:
    return {check.name: check for check in run_checks()}


def leftovers() -> list[Path]:
    places = [Path("/var/lib/whimbrel"), Path("/var/lib"), Path("/tmp"), *Path("/sys/fs/cgroup").glob("*")]
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    found = [entry for place in places if place.is_dir() for entry in place.glob("whimbrel-check-*")]
    return found + [mount for mount in mounts if "whimbrel-check-" in str(mount)]


def test_everything_is_told_and_nothing_is_left() -> None:
    results = by_name()
    assert list(results) == NAMES
    for check in results.values():
        assert check.reason
        assert "\n" not in check.reason
        assert check.fix or check.status is Status.OK
    assert leftovers() == []


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to try mounts, links and control groups")
def test_a_machine_that_was_set_up_passes() -> None:
    """Other engines need not run."""
    not_ok = [check for check in run_checks() if check.status is not Status.OK]
    assert [check for check in not_ok if check.name not in ("Docker", "Podman", "LXC")] == []
    assert all(check.status is Status.WARN for check in not_ok)


def test_missing_programs_are_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WHIMBREL_CRIU", str(tmp_path / "criu"))
    results = by_name()
    assert {name for name, check in results.items() if check.status is Status.FAIL} >= {
        "runc",
        "skopeo",
        "umoci",
    }
    assert results["nft"].status is Status.WARN
    assert "scripts/setup" in results["skopeo"].fix


@pytest.mark.skipif(os.geteuid() != 0, reason="CRIU is only tried as root")
@pytest.mark.parametrize(
    ("version", "verdict", "says"),
    [
        ("Version: 3.17.1", "Looks good.", "has version 3.17.1"),
        ("Version: 4.3", "Error (criu/vdso.c:405): vdso: not found", "vdso: not found"),
        ("no number", "Looks good.", "has version unknown"),
    ],
)
def test_a_criu_that_does_not_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, verdict: str, says: str
) -> None:
    criu = tmp_path / "criu"
    criu.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; else echo "{verdict}"; fi\n')
    criu.chmod(0o755)
    monkeypatch.setenv("WHIMBREL_CRIU", str(criu))
    check = by_name()["CRIU"]
    assert check.status is Status.FAIL
    assert says in check.reason
    assert "WHIMBREL_CRIU" in check.fix


def test_a_user_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    results = by_name()
    assert results["root"].status is Status.FAIL
    assert results["network links"] == Check(
        name="network links", status=Status.WARN, reason="not tried without root", fix="run as root"
    )


def test_a_probe_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(_: Path) -> None:
        raise WhimbrelError("cannot mount\noverlay")

    monkeypatch.setattr(checks.kernel_probes, "try_overlay", refused)
    monkeypatch.setattr(checks, "missing_support", lambda: "this kernel has none: use Linux 6.7")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert run(["check", "--json"]) == 1
    out, err = capfd.readouterr()
    document = json.loads(out)
    found = {check["name"]: check for check in document["checks"]}
    assert document["ok"] is False
    assert found["overlayfs"]["status"] == "fail"
    assert found["overlayfs"]["reason"] == "cannot mount overlay"
    assert found["write tracking"]["reason"] == "this kernel has none"
    assert set(found["root"]) == {"name", "status", "reason", "fix"}
    assert err.count("\n") == 1
    assert run(["check"]) == 1
    assert "CONFIG_USERFAULTFD" in capfd.readouterr().out
