"""`ControllerClient`: the controller's API for Python, synchronous. Everything raises typed errors of
`model.errors`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from whimbrel.client.token import authorization, token_of
from whimbrel.controller.listen import parse_listen
from whimbrel.controller.problems import error_from_problem
from whimbrel.controller.views import (
    ImageList,
    ImagePush,
    Logs,
    MigrationEvent,
    NodeView,
    PlannerView,
    ServiceList,
    VolumeList,
)
from whimbrel.model.application import Application, Session
from whimbrel.model.decision import Decision, UserStatus
from whimbrel.model.edge import Observation
from whimbrel.model.errors import BadInput, Unreachable
from whimbrel.model.history import PredictionErrors
from whimbrel.model.migration import MigrationRecord, Progress
from whimbrel.model.node import ComputingPower
from whimbrel.model.radio import Orders, UserEvent
from whimbrel.model.service import ExecResult, ServiceProbe, ServiceStatus
from whimbrel.plan.strategies import DEFAULT

QUICK_S = 30.0
LONG_S = 660.0  # longer than the controller gives an agent, so that its answer and not our timeout is seen
PUSH_S = 3660.0
QUIET_S = 20.0  # the event stream shows a sign of life every 5 s

_T = TypeVar("_T")
OnProgress = Callable[[Progress], None]


class ControllerClient:
    """Talks to ``unix:PATH`` or ``tcp:HOST:PORT``. A context manager; safe to use from one thread."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """Connects on first use. `token`: None means as the environment says (see `token_of`). Raises BadInput when
        the address is malformed, or a token."""
        listen = parse_listen(address)
        self._address = str(listen)
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        self._http = httpx.Client(
            base_url="http://controller" if listen.path else f"http://{host}:{listen.port}",
            # No TLS here: building its context would cost every command 30 ms.
            transport=httpx.HTTPTransport(uds=listen.path or None, verify=False),
            headers=authorization(token_of(os.environ) if token is None else token),
            timeout=httpx.Timeout(QUICK_S, connect=3.0),
            trust_env=False,
        )

    def __enter__(self) -> ControllerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- nodes and services -------------------------------------------------------------------------------
    def nodes(self) -> list[NodeView]:
        return self._call("GET", "/v1/nodes", list[NodeView])

    def node(self, name: str) -> NodeView:
        return self._call("GET", f"/v1/nodes/{_part(name)}", NodeView)

    def measure_power(self, name: str) -> ComputingPower:
        """Have an edge node measure its computing power again."""
        return self._call("POST", f"/v1/nodes/{_part(name)}/benchmark", ComputingPower)

    def services(self) -> list[ServiceStatus]:
        """All services of the nodes that answer; see `service_list` for the ones that do not."""
        return list(self.service_list().services)

    def service_list(self) -> ServiceList:
        return self._call("GET", "/v1/services", ServiceList)

    def service(self, name: str) -> ServiceStatus:
        return self._call("GET", f"/v1/services/{_part(name)}", ServiceStatus)

    def run_service(
        self,
        name: str,
        image: str,
        node: str,
        *,
        address: str = "",
        ports: Sequence[str] = (),
        args: Sequence[str] = (),
        env: Sequence[str] = (),
        memory_limit_bytes: int = 0,
        workload: str = "",
        volumes: Sequence[str] = (),
        shared: bool = False,
    ) -> ServiceStatus:
        """Start a service and wait until it runs. An empty `address` means: choose one. `shared`: its root file system
        lives on the shared storage of `node`."""
        body = {
            "node": node,
            "name": name,
            "image": image,
            "address": address,
            "ports": list(ports),
            "args": list(args),
            "env": list(env),
            "memory_limit_bytes": memory_limit_bytes,
            "workload": workload,
            "volumes": list(volumes),
            "shared": shared,
        }
        return self._call("POST", "/v1/services", ServiceStatus, body, timeout_s=LONG_S)

    def adopt_service(
        self,
        name: str,
        engine: str,
        container: str,
        node: str,
        *,
        address: str = "",
        ports: Sequence[str] = (),
        workload: str = "",
    ) -> ServiceStatus:
        """Make a running container of another engine on `node` a service. An empty `address` means: choose one."""
        body = {
            "node": node,
            "name": name,
            "engine": engine,
            "container": container,
            "address": address,
            "ports": list(ports),
            "workload": workload,
        }
        return self._call("POST", "/v1/services/adopt", ServiceStatus, body, timeout_s=LONG_S)

    def remove_service(self, name: str, *, keep_volumes: bool = False) -> None:
        query = "?keep_volumes=true" if keep_volumes else ""
        self._call("DELETE", f"/v1/services/{_part(name)}{query}", None, timeout_s=90.0)

    def release_service(self, name: str) -> None:
        """Give a container back to its engine, where it runs on."""
        self._call("POST", f"/v1/services/{_part(name)}/release", None, {}, timeout_s=90.0)

    def logs(self, name: str, tail_bytes: int = 65536) -> str:
        return self._call("GET", f"/v1/services/{_part(name)}/logs?tail_bytes={tail_bytes}", Logs).text

    def exec(self, name: str, argv: Sequence[str]) -> ExecResult:
        body = {"argv": list(argv)}
        return self._call("POST", f"/v1/services/{_part(name)}/exec", ExecResult, body, timeout_s=LONG_S)

    def probe(self, name: str, interval_s: float) -> ServiceProbe:
        """Two rounds of the tracker over a running service."""
        path = f"/v1/services/{_part(name)}/probe?interval_s={interval_s!r}"
        return self._call("POST", path, ServiceProbe, {}, timeout_s=LONG_S)

    # --- volumes and images ---------------------------------------------------------------------------------
    def volumes(self) -> VolumeList:
        return self._call("GET", "/v1/volumes", VolumeList)

    def remove_volume(self, service: str, name: str, node: str = "") -> None:
        """Of a service that is gone. `node` is needed when several nodes have one of that name."""
        query = f"?node={_part(node)}" if node else ""
        self._call("DELETE", f"/v1/volumes/{_part(service)}/{_part(name)}{query}", None)

    def images(self) -> ImageList:
        return self._call("GET", "/v1/images", ImageList)

    def push_image(self, image: str, to: str, source: str = "") -> ImagePush:
        """Bring an image (digest, the beginning of it, or reference) to a node, and wait until it is there."""
        body = {"image": image, "destination": to, "source": source}
        return self._call("POST", "/v1/images/push", ImagePush, body, timeout_s=PUSH_S)

    # --- migrations ---------------------------------------------------------------------------------------
    def migrate(
        self,
        service: str,
        to: str,
        strategy: str = DEFAULT,
        max_downtime_ms: float = 0.0,
        deadline_ms: float = 0.0,
        bandwidth_bps: float = 0.0,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        reason: str = "",
        handover_in_ms: float = 0.0,
        handover_ms: float = 0.0,
    ) -> MigrationRecord:
        """Start a migration and wait for its end. A migration that failed is a record too: look at `outcome`.

        Raises what refused the start (unknown names, agent down, Conflict). The migration goes
        on after an exception in `on_progress` and after KeyboardInterrupt.
        """
        started = self.start_migration(
            service, to, strategy, max_downtime_ms, deadline_ms, bandwidth_bps, dry_run, reason, handover_in_ms,
            handover_ms,
        )  # fmt: skip
        return self.follow(started.id, on_progress)

    def start_migration(
        self,
        service: str,
        to: str,
        strategy: str = DEFAULT,
        max_downtime_ms: float = 0.0,
        deadline_ms: float = 0.0,
        bandwidth_bps: float = 0.0,
        dry_run: bool = False,
        reason: str = "",
        handover_in_ms: float = 0.0,
        handover_ms: float = 0.0,
    ) -> MigrationRecord:
        """Start a migration; returns its record at once, outcome `running`."""
        body = {
            "service": service,
            "destination": to,
            "strategy": strategy,
            "max_downtime_ms": max_downtime_ms,
            "deadline_ms": deadline_ms,
            "bandwidth_bps": bandwidth_bps,
            "dry_run": dry_run,
            "reason": reason,
            "handover_in_ms": handover_in_ms,
            "handover_ms": handover_ms,
        }
        return self._call("POST", "/v1/migrations", MigrationRecord, body)

    def follow(self, migration_id: str, on_progress: OnProgress | None = None) -> MigrationRecord:
        """Wait for the end of a migration, with its news; returns at once when it is over."""
        path = f"/v1/migrations/{_part(migration_id)}/events"
        with (
            self._translated(),
            self._http.stream("GET", path, timeout=httpx.Timeout(QUIET_S, connect=3.0)) as response,
        ):
            if response.is_error:
                response.read()
                self._raise(response)
            for line in response.iter_lines():
                event = msgspec.json.decode(line, type=MigrationEvent)
                if event.record is not None:
                    return event.record
                if event.progress is not None and on_progress is not None:
                    on_progress(event.progress)
        raise Unreachable(
            f"the controller at {self._address} stopped before migration {migration_id} ended; it goes on at "
            "the agents: "
            f"ask again with `whimbrel migration show {migration_id}`"
        )

    def migrations(self, service: str = "", limit: int = 100) -> list[MigrationRecord]:
        """The newest first."""
        query = f"?limit={limit}" + (f"&service={quote(service, safe='')}" if service else "")
        return self._call("GET", f"/v1/migrations{query}", list[MigrationRecord])

    def migration(self, migration_id: str) -> MigrationRecord:
        return self._call("GET", f"/v1/migrations/{_part(migration_id)}", MigrationRecord)

    def cancel(self, migration_id: str) -> None:
        """Ask for a roll-back; raises Conflict when it is too late. `follow` waits for the end of it."""
        self._call("POST", f"/v1/migrations/{_part(migration_id)}/cancel", MigrationRecord)

    def resolve(self, migration_id: str, *, runs_at: str) -> None:
        """Say where the service runs (``source`` or ``destination``) when the destination never will; raises Conflict
        when nobody waits for that. `follow` waits for the end of the migration."""
        self._call("POST", f"/v1/migrations/{_part(migration_id)}/resolve", MigrationRecord, body={"runs_at": runs_at})

    # --- users and the planner ------------------------------------------------------------------------------
    def tell(self, event: UserEvent) -> Orders:
        """Post what a user's equipment tells."""
        return self._call("POST", f"/v1/users/{_part(event.user)}/events", Orders, event)

    def discover(self, user: str, application: str) -> Session:
        """Ask for an application in a user's name, and wait until its service is ready."""
        body = {"application": application}
        return self._call("POST", f"/v1/users/{_part(user)}/discovery", Session, body, timeout_s=LONG_S)

    def users(self) -> list[UserStatus]:
        return self._call("GET", "/v1/users", list[UserStatus])

    def user(self, name: str) -> UserStatus:
        return self._call("GET", f"/v1/users/{_part(name)}", UserStatus)

    def remove_user(self, name: str) -> None:
        """With its service."""
        self._call("DELETE", f"/v1/users/{_part(name)}", None, timeout_s=90.0)

    def applications(self) -> list[Application]:
        return self._call("GET", "/v1/applications", list[Application])

    def offer(self, application: Application) -> Application:
        return self._call("POST", "/v1/applications", Application, application)

    def withdraw(self, application: str) -> None:
        self._call("DELETE", f"/v1/applications/{_part(application)}", None)

    def planner(self) -> PlannerView:
        return self._call("GET", "/v1/planner", PlannerView)

    def set_planner(
        self,
        planner: str | None = None,
        order: str | None = None,
        strategy: str | None = None,
        paused: bool | None = None,
    ) -> PlannerView:
        """What is None stays as it is."""
        body = {"planner": planner, "order": order, "strategy": strategy, "paused": paused}
        return self._call("PUT", "/v1/planner", PlannerView, body)

    def prediction_errors(self) -> PredictionErrors:
        return self._call("GET", "/v1/planner/errors", PredictionErrors)

    def observation(self) -> Observation:
        return self._call("GET", "/v1/observation", Observation)

    def decisions(self, user: str = "", limit: int = 100) -> list[Decision]:
        """The newest first."""
        query = f"?limit={limit}" + (f"&user={quote(user, safe='')}" if user else "")
        return self._call("GET", f"/v1/decisions{query}", list[Decision])

    def decision(self, decision_id: str) -> Decision:
        return self._call("GET", f"/v1/decisions/{_part(decision_id)}", Decision)

    # --- the wire -----------------------------------------------------------------------------------------
    def _call(
        self, method: str, path: str, reply: type[_T] | None, body: Any = None, *, timeout_s: float = QUICK_S
    ) -> _T:
        with self._translated():
            response = self._http.request(
                method,
                path,
                content=None if body is None else msgspec.json.encode(body),
                headers={"Content-Type": "application/json"} if body is not None else None,
                timeout=httpx.Timeout(timeout_s, connect=3.0),
            )
        if response.is_error:
            self._raise(response)
        if reply is None:
            return None  # type: ignore[return-value]
        return msgspec.json.decode(response.content, type=reply)

    def _raise(self, response: httpx.Response) -> None:
        try:
            body = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            body = None
        raise error_from_problem(body, response.status_code)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(
                f"no controller answers at {self._address} ({error}): start one (`whimbrel lab up` or "
                "`whimbrel controller`) or name it with --controller or WHIMBREL_CONTROLLER"
            ) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"the controller at {self._address} did not answer in time: see its log") from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"the connection to the controller at {self._address} broke "
                f"({error or type(error).__name__}): is it running?"
            ) from error


def _part(name: str) -> str:
    """A name as a part of a path. Raises BadInput for what would lead to another path."""
    if name in ("", ".", "..") or "/" in name:
        raise BadInput(f"{name!r} is no name: `whimbrel service ls` and `whimbrel migration ls` show the names")
    return quote(name, safe="")
