"""The lab's own machinery, with stubs in place of agents and controller (the demo uses the real ones)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from whimbrel.agent.config import load_config
from whimbrel.controller.config import load as load_controller_config
from whimbrel.lab import cleanup, commands, config, processes, storage, topology
from whimbrel.lab.commands import lab_down, lab_status, lab_up, node_namespace, run_in
from whimbrel.model.errors import BadInput, Conflict, Refused, StepFailed, WhimbrelError
from whimbrel.model.node import Tier
from whimbrel.network import netns
from whimbrel.network.overlay import wait_until
from whimbrel.network.ping import round_trips_ms
from whimbrel.runtime.cgroups import Cgroup

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
PREFIX = f"l{os.getpid() % 100000}-"
STUB = Path(__file__).with_name("stub_whimbrel.py")


class Lab:
    """A lab of its own: prefix, directory and node names meet no other on the machine. It is the default one without
    the storage, whose mounts take a second of a processor, unless that is asked for."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.dir = directory / "lab"
        self.file = directory / "topology.toml"
        text = (Path(topology.__file__).parent / "topologies/default.toml").read_text()
        for name in ("edge-1", "edge-2", "edge-3", "gw-1", "gw-2"):
            text = text.replace(f'"{name}"', f'"t-{name}"')
        self._whole = f'prefix = "{PREFIX}"\n{text}'
        begin, end = self._whole.index("[storage]"), self._whole.index("[[edges]]")
        self.file.write_text(self._whole[:begin] + self._whole[end:])
        self.said: list[str] = []

    def with_storage(self) -> None:
        self.file.write_text(self._whole)

    def up(self) -> commands.LabStatus:
        return lab_up(self.file, self.said.append, lab_dir=self.dir)

    def down(self) -> None:
        lab_down(self.said.append, lab_dir=self.dir)

    def status(self) -> commands.LabStatus:
        return lab_status(lab_dir=self.dir)

    def leftovers(self) -> list[str]:
        """Namespaces, mounts, control groups and processes that bear the lab's names."""
        found = [path.name for path in topology.NAMESPACE_DIR.glob(f"{PREFIX}*")]
        found += [str(point) for point in cleanup.mounts_under(self.dir)]
        found += [str(f) for f in Cgroup("/whimbrel/t-edge-1").folders if f.is_dir()]
        found += [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_ours(entry)]
        return found + ([str(self.dir)] if self.dir.exists() else [])

    def _is_ours(self, process: Path) -> bool:
        try:
            return str(self.dir).encode() in (process / "cmdline").read_bytes()
        except OSError:
            return False


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(STUB)))
    monkeypatch.setenv("PYTHONPATH", str(Path(cleanup.__file__).parents[2]))
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.down()
        assert made.leftovers() == []


def test_up_status_down(lab: Lab) -> None:
    lab.with_storage()
    assert lab.status() == commands.LabStatus(up=False, present=False, directory=str(lab.dir))
    status = lab.up()
    assert status.up
    assert [node.name for node in status.nodes] == [
        "router", "ctl", "store", "t-edge-1", "t-edge-2", "t-edge-3", "t-gw-1", "t-gw-2", "ue-1"
    ]  # fmt: skip
    by_name = {node.name: node for node in status.nodes}
    assert by_name["t-edge-2"].address == "192.168.102.2"
    assert by_name["t-gw-1"].overlay_address == "10.77.0.1"
    assert by_name["ue-1"].address == "10.99.0.2"
    for node in status.nodes:
        if node.pid:
            namespace = os.stat(f"/proc/{node.pid}/ns/net").st_ino
            assert namespace == netns.inode(topology.NAMESPACE_DIR / node.namespace)
            assert os.getsid(node.pid) == node.pid, "a Ctrl-C at the terminal does not reach it"
    assert "controller answers" in lab.said
    assert lab.status() == status

    os.kill(by_name["t-edge-2"].pid, signal.SIGKILL)
    assert wait_until(lambda: not lab.status().up)
    dead = {node.name: node for node in lab.status().nodes}["t-edge-2"]
    assert (dead.pid, dead.alive) == (0, False)
    lab.down()
    assert lab.leftovers() == []
    assert not lab.status().present


def test_the_default_lab_has_storage_that_all_its_edges_mount(lab: Lab) -> None:
    """It starts by itself, and goes with the lab: what the fixture looks for at the end."""
    lab.with_storage()
    lab.up()
    for number in (1, 2, 3):
        config.shared_directory(lab.dir, f"t-edge-{number}").joinpath(f"from-{number}").write_text("here")
    seen = config.shared_directory(lab.dir, "t-edge-1").iterdir()
    assert sorted(path.name for path in seen) == ["from-1", "from-2", "from-3"]
    points = cleanup.mounts_under(lab.dir)
    assert len(points) == 3
    for number in (1, 2, 3):
        assert load_config(config.agent_config(lab.dir, f"t-edge-{number}")).shared_directory


def test_a_machine_without_sshfs_has_a_default_lab_without_storage(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage._LACKING, "nfs", lambda: "the kernel's nfsd")
    lab.with_storage()
    monkeypatch.setattr(storage.shutil, "which", lambda name: None if name == "sshfs" else f"/usr/bin/{name}")
    status = lab.up()
    assert status.up
    assert "store" not in [node.name for node in status.nodes]
    assert any("it needs sshfs" in line for line in lab.said)
    lab.down()
    lab.file.write_text(lab.file.read_text().replace("required = false", "required = true"))
    with pytest.raises(Refused, match="storage needs sshfs: run scripts/setup"):
        lab.up()


@pytest.mark.parametrize(
    ("wanted", "nfs_lacks", "found"), [("auto", "", "nfs"), ("auto", "rpcbind", "sshfs"), ("sshfs", "", "sshfs")]
)
def test_nfs_is_preferred_where_it_can_be_had(
    wanted: str, nfs_lacks: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(storage._LACKING, "nfs", lambda: nfs_lacks)
    plan = topology.load(None)
    assert plan.storage is not None
    asked = msgspec.structs.replace(plan, storage=msgspec.structs.replace(plan.storage, kind=wanted))
    given = storage.within_reach(asked, lambda _: None).storage
    assert given is not None
    assert given.kind == found


def test_nfs_that_cannot_be_had_is_refused_with_what_it_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage._LACKING, "nfs", lambda: "rpcbind and the kernel's nfsd")
    lab.with_storage()
    text = lab.file.read_text().replace('kind = "auto"\nrequired = false', 'kind = "nfs"')
    lab.file.write_text(text)
    with pytest.raises(Refused, match="storage needs rpcbind and the kernel's nfsd"):
        lab.up()


LINK = """
[[links]]
between = ["t-edge-1", "router"]
rate = "50mbit"
delay = "5ms"
[[links]]
between = ["ue-1", "t-gw-2"]
delay = "7ms"
"""


def test_a_link_whose_relay_died_makes_the_lab_not_whole(lab: Lab) -> None:
    lab.file.write_text(lab.file.read_text() + LINK)
    link, access = lab.up().links
    assert (set(access.between), access.rate_bps, access.delay_ms) == ({"ue-1", "t-gw-2"}, 0.0, 7.0)
    assert (set(link.between), link.rate_bps, link.delay_ms, link.alive) == ({"t-edge-1", "router"}, 50e6, 5.0, True)
    with run_in("t-edge-1", lab_dir=lab.dir):
        assert round_trips_ms(["192.168.101.1"], timeout_s=5.0)["192.168.101.1"] >= 10.0
    with run_in("ue-1", lab_dir=lab.dir):
        found = round_trips_ms(["10.99.0.1", "10.99.1.1"], timeout_s=5.0)
        assert found["10.99.1.1"] >= 14.0
        assert "10.99.0.1" in found, "the other access is as it was"
    if not link.pid:
        pytest.skip("netem delays here: no process that could die")
    os.kill(link.pid, signal.SIGKILL)
    assert wait_until(lambda: not lab.status().up)
    assert [part.alive for part in lab.status().links] == [False, True]
    lab.down()
    assert lab.leftovers() == []


def test_the_configurations_tell_capacity_and_paths(tmp_path: Path) -> None:
    plan = topology.load(Path("coordinated"))
    config.write_configs(plan, tmp_path)
    edge = load_config(config.agent_config(tmp_path, "edge-1"))
    assert (edge.cpus, edge.tier, edge.network_bps) == (0.7, Tier.EDGE, 175e6)
    assert {path.to: path.bps for path in edge.paths} == {
        "edge-2": 100e6, "edge-3": 100e6, "cloud": 75e6, "bs-2": 100e6, "bs-3": 100e6
    }  # fmt: skip
    assert edge.overlay_gateways == ("10.77.0.1", "10.77.0.2", "10.77.0.3")
    assert load_config(config.agent_config(tmp_path, "cloud")).tier is Tier.CLOUD
    assert load_config(config.agent_config(tmp_path, "bs-2")).nat == ("10.99.1.0/24",)


def test_the_dashboard_of_a_lab_shows_the_experiments_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config.write_configs(topology.load(), tmp_path / "lab")
    told = load_controller_config(config.controller_config(tmp_path / "lab"))
    assert told.experiments_dir == tmp_path / "out", "where `whimbrel experiment run` writes by default"


def test_the_configurations_are_what_agents_and_controller_read(tmp_path: Path) -> None:
    plan = topology.load()
    config.write_configs(plan, tmp_path)
    edge = load_config(config.agent_config(tmp_path, "edge-3"))
    assert (edge.endpoint, edge.bridge_address, edge.overlay_gateway) == (
        plan.endpoint(plan.edges[2]), "", "10.77.0.1"
    )  # fmt: skip
    gateway = load_config(config.agent_config(tmp_path, "gw-2"))
    assert (gateway.bridge_address, gateway.state_dir) == ("10.77.0.2/16", str(tmp_path / "gw-2"))
    controller = load_controller_config(config.controller_config(tmp_path))
    assert controller.nodes == tuple(plan.endpoint(site) for site in plan.sites)
    assert controller.listen.path == str(tmp_path / "controller.sock")
    assert str(controller.address_pool) == "10.77.1.0/16"


def test_up_twice_is_refused_and_harms_nothing(lab: Lab) -> None:
    first = lab.up()
    with pytest.raises(Conflict, match=r"a lab is up already.*whimbrel lab down"):
        lab.up()
    assert lab.status() == first
    os.kill(first.nodes[2].pid, signal.SIGKILL)
    assert wait_until(lambda: not lab.status().up)
    with pytest.raises(Conflict, match="half up"):
        lab.up()


def test_up_while_another_is_at_work_is_refused(lab: Lab) -> None:
    with commands._locked(lab.dir), pytest.raises(Conflict, match="is at work"):
        lab.up()


def test_down_without_a_lab_says_so(lab: Lab) -> None:
    lab.down()
    assert lab.said == ["no lab is up, nothing to remove"]


@pytest.fixture
def neighbour(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's namespace under the very name that this lab would use, and a process in it."""
    path = topology.load(lab.file).namespace_path("ue-1")
    netns.create(path)
    inhabitant = netns.call(path, lambda: subprocess.Popen(["sleep", "100"], start_new_session=True))
    try:
        yield inhabitant
        assert inhabitant.poll() is None, "the neighbour's process was ended"
        assert path.exists(), "the neighbour's namespace was removed"
    finally:
        inhabitant.kill()
        inhabitant.wait()
        netns.remove(path)


@pytest.mark.usefixtures("neighbour")
def test_down_without_a_record_touches_nothing_even_under_its_own_names(lab: Lab) -> None:
    lab.down()
    assert cleanup.sweep(lab.dir) == []
    lab.dir.mkdir()
    lab.down()
    lab.dir.rmdir()


@pytest.mark.usefixtures("neighbour")
def test_up_refuses_names_in_use_and_leaves_them_alone(lab: Lab) -> None:
    with pytest.raises(Conflict, match="ue-1 exist and are not this lab's"):
        lab.up()
    assert not lab.dir.exists()


@pytest.mark.thorough
def test_two_labs_side_by_side_are_taken_down_one_at_a_time(lab: Lab, tmp_path: Path) -> None:
    """Also when one's prefix begins like the other's."""
    other = Lab(tmp_path / "other")
    other.file.write_text(other.file.read_text().replace(PREFIX, f"{PREFIX[:-1]}x-").replace('"t-', '"u-'))
    first = lab.up()
    try:
        other.up()
        other.down()
        assert lab.status() == first
        assert first.up
    finally:
        other.down()


@pytest.mark.thorough
def test_a_dead_lab_is_replaced(lab: Lab) -> None:
    first = lab.up()
    for node in first.nodes:
        if node.pid:
            os.kill(node.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(node.pid for node in lab.status().nodes))
    second = lab.up()
    assert second.up
    assert any(line.startswith("removed from an earlier lab") for line in lab.said)


def test_an_agent_that_ends_while_starting_is_told_with_its_last_words(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAILS", "t-edge-3")
    with pytest.raises(StepFailed, match=r"the agent of t-edge-3 ended while starting: error: no such luck"):
        lab.up()
    assert lab.leftovers() == []


def test_ctrl_c_while_coming_up_leaves_nothing(lab: Lab) -> None:
    def interrupt(line: str) -> None:
        if "t-edge-2 answers" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab_up(lab.file, interrupt, lab_dir=lab.dir)
    assert lab.leftovers() == []


def test_sigkill_while_coming_up_leaves_what_down_removes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who runs `lab up` dies without a chance to tidy; so does an agent with a frozen container."""
    lab.with_storage()
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.5)
    program = (
        "import sys, time; from pathlib import Path; from whimbrel.lab import processes, commands\n"
        f"processes.COMMAND = (sys.executable, {str(STUB)!r})\n"
        f"commands.lab_up(Path({str(lab.file)!r}), lambda line: (print(line, flush=True), "
        f"'t-gw-1 answers' in line and time.sleep(60)), lab_dir=Path({str(lab.dir)!r}))"
    )
    environment = {**os.environ, "STUB_LITTER": "t-edge-1", "STUB_STUBBORN": "1"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as up:
        assert up.stdout is not None
        for line in up.stdout:
            if "t-gw-1 answers" in line:
                up.kill()
                break
    edge = next(node for node in lab.status().nodes if node.name == "t-edge-1")
    assert wait_until(lambda: (lab.dir / "t-edge-1/netns/demo").exists())
    assert wait_until(lambda: Cgroup("/whimbrel/t-edge-1/demo").pids() != [])
    time.sleep(0.1)
    os.kill(edge.pid, signal.SIGKILL)
    lab.down()
    assert lab.leftovers() == []
    told = " ".join(lab.said)
    for what in ("lab processes", "1 service process", "6 mounts", "9 network namespaces", "control group"):
        assert what in told, told


def test_a_process_that_took_over_a_pid_is_not_touched(lab: Lab) -> None:
    lab.up()
    with subprocess.Popen(["sleep", "100"]) as bystander:
        (lab.dir / "t-edge-1" / "agent.pid").write_text(f"{bystander.pid} 12345\n")
        lab.down()
        assert bystander.poll() is None
        bystander.kill()


def test_a_directory_with_other_files_is_refused_and_kept(lab: Lab) -> None:
    lab.dir.mkdir()
    (lab.dir / "thesis.tex").write_text("years of work")
    with pytest.raises(WhimbrelError, match="holds other files"):
        lab.up()
    lab.down()
    assert (lab.dir / "thesis.tex").exists()
    (lab.dir / "thesis.tex").unlink()
    lab.dir.rmdir()


def test_the_services_of_a_real_node_of_the_same_name_are_left_alone(lab: Lab) -> None:
    """Its processes are in no namespace of this lab."""
    lab.up()
    group = Cgroup("/whimbrel/t-edge-1/real")
    group.create()
    with subprocess.Popen(["sleep", "100"]) as service:
        try:
            group.attach(service.pid)
            lab.down()
            assert service.poll() is None
        finally:
            service.kill()
            service.wait()
            group.remove(with_parents=True)


def test_code_can_run_in_a_node(lab: Lab) -> None:
    with pytest.raises(Refused, match="no lab is up"):
        run_in("ue-1", lab_dir=lab.dir)
    lab.up()
    outside = os.readlink("/proc/thread-self/ns/net")
    with run_in("ue-1", lab_dir=lab.dir):
        argv = ["ping", "-c1", "-W1", "10.99.0.1"]
        inside = subprocess.run(argv, check=False, capture_output=True).returncode
    assert inside == 0
    assert os.readlink("/proc/thread-self/ns/net") == outside
    with pytest.raises(BadInput, match="no node 'edge-1'"):
        node_namespace("edge-1", lab_dir=lab.dir)
    ping = ["ping", "-c1", "-W1", "192.168.103.2"]
    done = netns.call(node_namespace("ctl", lab_dir=lab.dir), lambda: subprocess.run(ping, capture_output=True))
    assert done.returncode == 0
