"""What crosses of a folder, one record after the other. Paths are relative to the folder, as the kernel has them.

    Stash Unstash              a file or folder that has another name now: put aside first, placed later
    Folder Symlink Special     made as they are; Special is a fifo, an overlay's whiteout, or one of the
                               device nodes that every container has
    File Data Zeros FileEnd    a file: what changed of it, and at its end the digest of all of it
    Link                       another name of a file that is there already
    Removed Forget             a path, and a file's table of digests, that are not needed any more

A file is known by `id`, whatever its names are: what crossed of it before is kept by that.
"""

from __future__ import annotations

import msgspec

OPAQUE = "trusted.overlay.opaque"
XATTR_PREFIXES = ("user.", "security.capability", OPAQUE, "system.posix_acl_")


# No record refers to another, so there are no cycles among them for Python to look for.
class Record(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", gc=False):
    pass


class Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`mode` with the file's kind; of the extended attributes those with `XATTR_PREFIXES`."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes] = {}


class Stash(Record, frozen=True, tag=1):
    """`whole`: the source sees all that is in the folder, also what did not cross because it was there already."""

    path: bytes
    ticket: int
    whole: bool = False


class Unstash(Record, frozen=True, tag=2):
    ticket: int
    path: bytes


class Folder(Record, frozen=True, tag=3):
    path: bytes
    meta: Meta


class Symlink(Record, frozen=True, tag=4):
    path: bytes
    target: bytes
    meta: Meta


class Special(Record, frozen=True, tag=5):
    """`device`: (major, minor) of a node; (0, 0) is overlay's whiteout."""

    path: bytes
    meta: Meta
    device: tuple[int, int] = (0, 0)


class Link(Record, frozen=True, tag=6):
    path: bytes
    target: bytes


class File(Record, frozen=True, tag=7):
    """`fresh`: to be made anew. The records up to FileEnd are about this file."""

    path: bytes
    id: int
    fresh: bool
    size_bytes: int
    block_bytes: int
    meta: Meta


class Data(Record, frozen=True, tag=8):
    """Whole blocks from `offset` on (the file's last one may be short), and the digest of each. Of a record that came,
    `content` is a part of the frame that it came in."""

    offset: int
    content: memoryview
    digests: bytes


class Zeros(Record, frozen=True, tag=9):
    offset: int
    length: int


class FileEnd(Record, frozen=True, tag=10):
    digest: bytes


class Removed(Record, frozen=True, tag=11):
    path: bytes


class Forget(Record, frozen=True, tag=12):
    ids: tuple[int, ...]


AnyRecord = Stash | Unstash | Folder | Symlink | Special | Link | File | Data | Zeros | FileEnd | Removed | Forget
encode = msgspec.msgpack.Encoder().encode
decode_all = msgspec.msgpack.Decoder(list[AnyRecord]).decode
