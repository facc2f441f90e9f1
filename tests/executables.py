"""Tools that are not on this machine: scripts in a folder of the test, put first on PATH."""

from pathlib import Path


def executable(folder: Path, name: str, script: str) -> str:
    """Write a tool as a shell script; what is returned is a PATH to find it on."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return str(folder)
