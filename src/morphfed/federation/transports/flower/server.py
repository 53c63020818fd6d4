"""Flower's server at the coordinator: its process, the sites' keys, and the run whose Grid the round loop uses.

The run's app is a file without code. Flower wants one registered; nobody ever asks for it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from morphfed.core.errors import LinkError
from morphfed.core.memory import LARGE_PAGES
from morphfed.federation.transports.flower import QUIET
from morphfed.federation.transports.flower.calls import Retry, as_link_errors
from morphfed.federation.transports.flower.messages import objects_of, read_message, surely

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree

APP = """\
[project]
name = "morphfed"
version = "1.0.0"
description = "No code: the sites run the morphfed that they have installed."
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "morphfed"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "morphfed_none:app"
clientapp = "morphfed_none:app"

[tool.flwr.app.config]
"""

_PATIENCE = 60.0  # seconds for which calls to the server on this machine are tried again, while its process runs
_BEAT = 15.0
_MEMORY = {**LARGE_PAGES, "MALLOC_ARENA_MAX": "2"}  # each of its threads would keep memory of its own
_PROGRAM = "morphfed.federation.transports.flower.superlink"


@dataclass(frozen=True)
class ServerFiles:
    """What the server needs.

    Attributes:
        authority, certificate, key: PEM files.
        secret: file whose holder may take a run's token.
        state: folder of its database and log.
        port: on the loopback.
    """

    authority: Path
    certificate: Path
    key: Path
    secret: Path
    state: Path
    port: int

    @property
    def address(self) -> str:
        """Of all its interfaces, for this machine only."""
        return f"localhost:{self.port}"


class Server:
    """Flower's server as a child process, which ends with this one.

    Raises:
        LinkError: on entry: it does not start; its log's last lines are quoted.
    """

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        files = self._files
        end = time.monotonic() + 20  # the server of a coordinator that was killed ends by itself
        while _listening(files.port) and time.monotonic() < end:
            time.sleep(0.2)
        if _listening(files.port):
            raise LinkError(
                f"Port {files.port} of this machine is taken.",
                fix="stop the other coordinator, or change inner_port in federation.toml and nginx/morphfed.conf.",
            )
        files.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        arguments = {
            "--ssl-ca-certfile": files.authority,
            "--ssl-certfile": files.certificate,
            "--ssl-keyfile": files.key,
            "--database": files.state / "flower.db",
            "--host": "127.0.0.1",
            "--port": files.port,
            "--isolation": "process",  # it starts no program of its own
            "--superexec-auth-secret-file": files.secret,
        }
        flags = [str(part) for pair in arguments.items() for part in pair]
        command = [sys.executable, "-P", "-m", _PROGRAM, *flags, "--enable-supernode-auth"]
        environment = {**_MEMORY, **os.environ, **QUIET, "FLWR_HOME": str(files.state / "home")}
        with (files.state / "flower.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=files.state
            )
        end = time.monotonic() + 300  # on a busy machine its imports alone can take minutes
        while not _listening(files.port):
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                tail = (files.state / "flower.log").read_text(errors="replace").splitlines()[-5:]
                raise LinkError(
                    f"Flower's server did not start: {' | '.join(tail)}", fix=f"read {files.state / 'flower.log'}."
                )
            time.sleep(0.1)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._process = None


class WaitingGrid(HttpGrid):  # type: ignore[misc]  # flwr has no types here
    """Flower's Grid, whose own way of pulling a message waits until its sender has sent all of it."""

    def _connect(self) -> None:
        super()._connect()
        client = self._client
        client.PushObject = surely(client.PushObject, client.PullObject)

    def announced(self, tickets: Collection[str]) -> list[tuple[str, ObjectTree]]:
        """Answers that have begun to arrive, each once."""
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(tickets)))
        names = [message.metadata.reply_to_message_id for message in found.messages_list]
        return list(zip(names, found.message_object_trees, strict=True))

    def arrived(self, tree: ObjectTree) -> bool | None:
        """Whether a message's own object is there, which sites send last."""
        asked = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=tree.object_id)
        found = self._runtime_client.PullObject(asked)
        return bool(found.object_available) if found.object_found else None

    def fetch(self, tree: ObjectTree) -> Message:
        """All of it, within seconds: whoever sent the last object first has to be quick.

        Raises:
            ObjectPullError: an object is missing.
            ValueError: damaged.
        """
        node, run, client = self.node, self.run.run_id, self._runtime_client
        pull = make_pull_object_fn_protobuf(client.PullObject, node, run)
        contents = pull_objects(objects_of(tree), pull, max_time=_PATIENCE, max_tries_per_object=5)
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run)(tree.object_id)
        return read_message(tree.object_id, contents)


class Run:
    """A run at the server, for use in a ``with`` block; its Grid is that of the round loop.

    Args:
        files: of the server.
        keys: site → public key, PEM.
        alive: whether the server's process runs; calls to a dead one are not tried again.

    Raises:
        LinkError: on entry: the server cannot be reached or refuses.
    """

    def __init__(
        self, files: ServerFiles, keys: Mapping[str, bytes], *, alive: Callable[[], bool] = lambda: True
    ) -> None:
        self._files, self._keys, self._retry = files, dict(keys), Retry(_PATIENCE, alive)
        self._where = f"Flower's server at {files.address}"
        self._stop = threading.Event()
        self.grid: WaitingGrid | None = None
        self.nodes: dict[str, int] = {}
        self._run_id = 0

    def __enter__(self) -> Run:
        with as_link_errors(self._where):
            control = self._control()
            try:
                self.nodes = self._register(control)
                fab, _ = build_fab_from_files({"pyproject.toml": APP.encode(), "LICENSE": b"Apache-2.0\n"})
                answer = control.StartRun(StartRunRequest(fab=Fab(content=fab)))
            finally:
                control.close()
            if not answer.run_id:
                raise LinkError(f"{self._where} started no run.", fix=f"read {self._files.state / 'flower.log'}.")
            self._run_id = answer.run_id
            self.grid = self._connect(self._token())
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *failed: object) -> None:
        self._stop.set()
        if self.grid is None:
            return
        with suppress(httpx.HTTPError):
            self._retry.seconds = 1.0
            outcome = "failed" if failed[0] is not None else "completed"
            self.grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=""))
        self.grid.close()

    def _control(self) -> ControlHttpClient:
        return self._client(ControlHttpClient)

    def _client(self, kind: Any, *interceptors: Any) -> Any:
        return kind.from_server_address(
            self._files.address,
            insecure=False,
            root_certificates=self._files.authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), *interceptors],
            retry_invoker=self._retry,
        )

    def _register(self, control: ControlHttpClient) -> dict[str, int]:
        """Site → node number, registering keys that the server does not know yet."""

        def known() -> dict[bytes, int]:
            listed = control.ListNodes(ListNodesRequest()).nodes_info
            return {node.public_key: node.node_id for node in listed if node.status != "unregistered"}

        have = known()
        for site, key in self._keys.items():
            if key not in have:
                control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
        have = known()
        return {site: have[key] for site, key in self._keys.items()}

    def _token(self) -> str:
        """The token of this run's task; those of runs that a killed coordinator left are taken and dropped."""
        secret = SuperExecAuthHttpInterceptor(
            master_secret=self._files.secret.read_bytes(), protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        client = self._client(RuntimeHttpClient, secret)
        try:
            for _ in range(1000):
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if found.token and found.task.run_id == self._run_id:
                    return str(found.token)
                if not found.token:
                    break
        finally:
            client.close()
        raise LinkError(f"{self._where} gave no token for its run.", fix="stop other programs that use this server.")

    def _connect(self, token: str) -> WaitingGrid:
        grid = WaitingGrid(self._files.address, False, self._files.authority.read_bytes(), token=token)
        grid._retry_invoker = self._retry
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        return grid

    def _beat(self) -> None:
        """Tell the server that the run goes on; when it no longer knows it, the next question finds out."""
        while not self._stop.wait(_BEAT):
            with suppress(httpx.HTTPError, RuntimeError, ValueError):
                if self.grid is not None:
                    self.grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
