#!/usr/bin/python3
"""The guest's first process: what an init system would mount, then commands from the host, one JSON line each.

``{"argv": [...], "timeout_s": n}`` is answered by ``{"code": n, "output": "..."}``; code -1: it took too long.
``{"stop": true}`` powers it off. Standard library only, and nothing of the project's: the first command unpacks that.
"""

import json
import os
import subprocess
import time

MOUNTS = (
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),  # the only hierarchy: control groups of version 2 alone
)
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def main() -> None:
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for kind, place in MOUNTS:
        os.makedirs(place, exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, place], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["hostname", "guest"], check=True)
    subprocess.run(["modprobe", "virtio_console"], check=True)
    with open(port_device(), "r+b", buffering=0) as port:
        port.write(b'{"code": 0, "output": "ready"}\n')
        serve(port)
    os.sync()


def port_device():
    """No udev runs here that would make a link with the port's name."""
    (name,) = os.listdir("/sys/class/virtio-ports")
    return f"/dev/{name}"


def serve(port) -> None:
    pending = b""
    while True:
        data = port.read(65536)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order.get("stop"):
                return
            port.write(json.dumps(run(order["argv"], order["timeout_s"])).encode() + b"\n")


def run(argv, timeout_s):
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        return {"code": -1, "output": (error.stdout or b"").decode(errors="replace")}
    except OSError as error:
        return {"code": 127, "output": str(error)}
    return {"code": done.returncode, "output": done.stdout.decode(errors="replace")}


def reap_until_gone(pid):
    """Whoever loses its parent becomes the first process's child."""
    while os.wait()[0] != pid:
        pass


if __name__ == "__main__":
    server = os.fork()
    if server == 0:
        main()
        os._exit(0)
    reap_until_gone(server)
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("o")  # power off
    while True:
        time.sleep(1)
