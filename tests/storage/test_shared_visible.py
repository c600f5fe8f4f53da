"""What one node has written is what the other one reads, or it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared_mounts import INSIDE, Shared
from whimbrel.model.errors import StepFailed
from whimbrel.storage.shared.helper import Helper
from whimbrel.storage.shared.place import await_visible
from whimbrel.storage.shared.visible import settle

WRITER = f"""
import mmap, time
{INSIDE}
log = open('/log', 'ab', buffering=0)
mapped = open('/mapped', 'r+b')
memory = mmap.mmap(mapped.fileno(), 8192)
for n in range(200):
    log.write(b'%d\\n' % n)
    memory[5000:5004] = b'%04d' % n
print('written', flush=True)
time.sleep(60)
"""


def test_what_a_process_holds_open_is_pushed_out_and_seen(shared: Shared) -> None:
    root = shared.one / "settle"
    root.mkdir()
    (root / "mapped").write_bytes(bytes(8192))
    with subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"written\n"
            seen = settle(str(root), [writer.pid])
            other = shared.two / "settle"
            assert (other / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(200))
            assert (other / "mapped").read_bytes()[5000:5004] == b"0199"
        finally:
            writer.kill()
    assert {path: size for path, size, _ in seen} == {"/log": 690, "/mapped": 8192}


def test_the_reader_waits_until_it_sees_it_and_tells_what_it_does_not(shared: Shared) -> None:
    folder = shared.one / "await"
    (folder / "deep").mkdir(parents=True)
    content = os.urandom(300_000)
    (folder / "deep/pages").write_bytes(content)
    status = (folder / "deep/pages").stat()
    seen = [("/deep/pages", status.st_size, status.st_mtime_ns)]
    there = shared.two / "await"
    with Helper(str(shared.two)) as helper:
        assert await_visible(helper, there, seen, timeout_s=5) < 5000
        assert (there / "deep/pages").read_bytes() == content
        later = [("/deep/pages", status.st_size + 7, status.st_mtime_ns)]
        with pytest.raises(StepFailed, match=r"deep/pages has 300007 bytes, there 300000 bytes; mount it with shorter"):
            await_visible(helper, there, later, timeout_s=0.1)

        def grow() -> None:
            file = shared.data / "await/deep/pages"
            with file.open("ab") as appended:
                appended.write(b"1234567")
            os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))

        timer = threading.Timer(0.3, grow)
        timer.start()
        assert await_visible(helper, there, later, timeout_s=20) > 0
        timer.join()


def test_a_link_in_the_root_leads_the_reader_nowhere(shared: Shared, tmp_path: Path) -> None:
    """The names come from the other node, the links from the service."""
    (tmp_path / "secret").write_text("x")
    (shared.one / "links").mkdir()
    os.symlink(tmp_path, shared.one / "links/out")
    status = (tmp_path / "secret").stat()
    seen = [("/out/secret", status.st_size, status.st_mtime_ns)]
    with Helper(str(shared.two)) as helper, pytest.raises(StepFailed, match="there no such file"):
        await_visible(helper, shared.two / "links", seen, timeout_s=0.1)
