"""SHA-256 of files: how models, catalogues and downloads are told apart."""

import hashlib
import os


def file_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as ``sha256:...``."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
