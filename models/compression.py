"""zstd, from the standard library where it has it, else from its backport; pages share one compressor."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["compress", "zstd"]

# A compressor of its own for each page would take longer to make than the page to compress.
_compressor = zstd.ZstdCompressor(level=1)


def compress(content: bytes) -> bytes:
    """One zstd frame, quickly made."""
    return _compressor.compress(content, zstd.ZstdCompressor.FLUSH_FRAME)
