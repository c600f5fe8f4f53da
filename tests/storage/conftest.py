from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared_mounts import POSSIBLE, Shared, shared_file_system


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One shared file system, seen by two nodes. Tests use names of their own on it."""
    if not POSSIBLE:
        pytest.skip("needs root, /dev/fuse and sshfs")
    with shared_file_system(tmp_path_factory.mktemp("shared")) as pair:
        yield pair
