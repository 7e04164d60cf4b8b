"""What a FITS file may count to: headers are looked at before astropy is, which would count to any number."""

import re
from pathlib import Path
from typing import BinaryIO

BLOCK = 2880
"""FITS files are made of blocks of so many bytes."""
MOST = 999
"""Axes, and columns of a table, that the standard allows."""
COUNT = re.compile(rb"^(NAXIS|TFIELDS|PCOUNT|GCOUNT|BITPIX|NAXIS\d+) *= *([+-]?\d+)")


def check_headers(path: Path) -> None:
    """Follow the headers of a FITS file as far as they make sense.

    Raises:
        ValueError: one has more axes or columns than the standard allows; OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        end = stream.seek(0, 2)
        at = 0
        while at < end:
            counts, at = _read_header(stream, at)
            for name in ("NAXIS", "TFIELDS"):
                if not 0 <= counts.get(name, 0) <= MOST:
                    raise ValueError(f"a header says {name} = {counts[name]}, where {MOST} is the most")
            size = abs(counts.get("BITPIX", 0)) // 8 * counts.get("GCOUNT", 1)
            items = 1 if counts.get("NAXIS", 0) else 0
            for i in range(1, counts.get("NAXIS", 0) + 1):
                items *= counts.get(f"NAXIS{i}", 0)
            size *= counts.get("PCOUNT", 0) + items
            if size < 0:
                return  # nonsense that astropy refuses
            at += -(-size // BLOCK) * BLOCK


def _read_header(stream: BinaryIO, at: int) -> tuple[dict[str, int], int]:
    """Whole numbers of the header that begins here, and where it ends."""
    counts: dict[str, int] = {}
    stream.seek(at)
    while block := stream.read(BLOCK):
        at += len(block)
        for start in range(0, len(block), 80):
            card = block[start : start + 80]
            if card[:8] == b"END     " or card == b"END":
                return counts, at
            if (found := COUNT.match(card)) is not None and len(found[2]) < 25:
                counts.setdefault(found[1].decode(), int(found[2]))
    return counts, at
