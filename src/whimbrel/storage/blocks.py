"""Digests of a file's blocks: what of a file has crossed already, and whether it arrived as it left.

XXH3 (128 bits, seeded anew for every migration) because it was measured: 500 MB in the page cache in blocks of 4 KiB
take 65 ms to read and digest, with BLAKE3 300 ms, with SHA-256 and BLAKE2b more; and that time may fall into the
freeze. It finds every accident. It is no protection from somebody who makes two blocks of one digest on purpose:
that would be the service itself, which could damage nothing but its own file.
"""

from __future__ import annotations

import xxhash

DIGEST_BYTES = 16
SMALLEST_BLOCK_BYTES = 4096
BLOCK_SIZES = tuple(SMALLEST_BLOCK_BYTES << (2 * step) for step in range(6))  # 4 KiB to 4 MiB
MOST_BLOCKS = 1 << 18
CHUNK_BYTES = 1 << 18
ZEROS = bytes(DIGEST_BYTES)
"""Stands for a block of zeros, whether on disk or a hole: what a file that is only made longer consists of."""


def block_bytes_for(size_bytes: int) -> int:
    """Small blocks find small changes; the table of a large file must not grow without bound."""
    for block_bytes in BLOCK_SIZES:
        if size_bytes <= block_bytes * MOST_BLOCKS:
            return block_bytes
    return BLOCK_SIZES[-1]


def most_bytes(block_bytes: int) -> int:
    """How large a file may become whose blocks were chosen when it was smaller."""
    return block_bytes * MOST_BLOCKS * 16


class Digester:
    """Digests with one seed; both sides must use the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._zero = {size: xxhash.xxh3_128_digest(bytes(size), seed) for size in BLOCK_SIZES}

    def blocks(self, content: memoryview, block_bytes: int) -> bytes:
        """One digest after the other; the last block may be short."""
        digest, seed = xxhash.xxh3_128_digest, self.seed
        whole = [digest(content[at : at + block_bytes], seed) for at in range(0, len(content), block_bytes)]
        zero = self._zero[block_bytes]
        if zero in whole:
            whole = [ZEROS if one == zero else one for one in whole]
        rest = len(content) % block_bytes
        if rest and content[-rest:] == bytes(rest):
            whole[-1] = ZEROS
        return b"".join(whole)

    def whole(self, table: bytes | bytearray, size_bytes: int) -> bytes:
        """The digest of a file, out of those of its blocks."""
        return xxhash.xxh3_128_digest(bytes(table) + size_bytes.to_bytes(8, "little"), self.seed)


class BlockTable:
    """The digests of one file's blocks as they are at the destination."""

    __slots__ = ("block_bytes", "digests", "size_bytes")

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.size_bytes = 0
        self.digests = bytearray()

    def resize(self, size_bytes: int) -> None:
        """As `truncate` changes a file: what is added is zeros. A last block that was or becomes short keeps its
        old digest, which its content as it is now has not: it will be found changed."""
        digests = self._count(size_bytes) * DIGEST_BYTES
        del self.digests[digests:]
        self.digests.extend(bytes(digests - len(self.digests)))
        self.size_bytes = size_bytes

    def _count(self, size_bytes: int) -> int:
        return -(-size_bytes // self.block_bytes)

    def slot(self, offset: int, length: int) -> slice:
        """Where the digests of `length` bytes from `offset` are; `offset` begins a block."""
        first = offset // self.block_bytes
        return slice(first * DIGEST_BYTES, (first + self._count(length)) * DIGEST_BYTES)
