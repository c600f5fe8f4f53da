"""An echo service and clients that measure it, each on sockets of a given namespace."""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from whimbrel.network import netns

PORT = 9000


class Echo:
    """Answers UDP datagrams and TCP lines in a namespace until closed."""

    def __init__(self, namespace: Path) -> None:
        def sockets() -> tuple[socket.socket, socket.socket]:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            udp.bind(("0.0.0.0", PORT))
            return udp, socket.create_server(("0.0.0.0", PORT))

        self.udp, self.tcp = netns.call(namespace, sockets)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (self.udp, self.tcp):
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            clients: list[socket.socket] = []
            while not self._stop.is_set():
                for key, _ in selector.select(0.005):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self.tcp:
                        client = sock.accept()[0]
                        clients.append(client)
                        selector.register(client, selectors.EVENT_READ)
                    elif sock is self.udp:
                        with contextlib.suppress(BlockingIOError):
                            while True:
                                data, peer = sock.recvfrom(2048)
                                sock.sendto(data, peer)
                    elif data := sock.recv(2048):
                        sock.sendall(data)
                    else:
                        selector.unregister(sock)
            for client in clients:
                client.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.udp.close()
        self.tcp.close()


@dataclass
class Talk:
    """Numbered datagrams at `rate` a second from a namespace; what came back, and after how long."""

    namespace: Path
    target: str
    source: str = ""
    rate: int = 1000
    sent: dict[int, float] = field(default_factory=dict)
    delays_s: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._socket = netns.call(self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
        self._socket.bind((self.source, 0))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._send, self._receive)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        begin = time.monotonic()
        number = 0
        while not self._stop.is_set():
            self.sent[number] = time.monotonic()
            self._socket.sendto(struct.pack("!I", number), (self.target, PORT))
            number += 1
            time.sleep(max(0.0, begin + number / self.rate - time.monotonic()))

    def _receive(self) -> None:
        quiet = 0
        while not self._stop.is_set() or (quiet < 2 and len(self.order) < len(self.sent)):
            try:
                (number,) = struct.unpack("!I", self._socket.recv(64))
            except TimeoutError:
                quiet += self._stop.is_set()
                continue
            self.order.append(number)
            self.delays_s[number] = time.monotonic() - self.sent[number]

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    @property
    def lost(self) -> list[int]:
        return sorted(set(self.sent) - set(self.delays_s))

    @property
    def outage_ms(self) -> float:
        return (max(self.delays_s.values()) - statistics.median(self.delays_s.values())) * 1e3
