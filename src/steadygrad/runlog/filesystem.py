"""Which SQLite journal is safe where a run file is to be written.

WAL needs memory shared between the processes on one machine, which a network file
system does not give: there, SQLite's rollback journal is used. Linux tells the type
of every mount in /proc; elsewhere only Windows' network paths are recognised.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

# fmt: off
NETWORK_TYPES = frozenset([
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "ceph",
    "glusterfs", "beegfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "panfs", "wekafs", "ncpfs",
    "coda", "vboxsf", "prl_fs", "vmhgfs", "virtiofs", "fuse",
])
# fmt: on


def journal_mode(path: str | os.PathLike[str], mountinfo: str | None = None) -> str:
    """Choose SQLite's journal for a file that is to be written at ``path``.

    Args:
        path: where the file will be.
        mountinfo: the text of ``/proc/self/mountinfo``; None reads it.

    Returns:
        ``"WAL"``, or ``"TRUNCATE"`` on a network file system.

    Example:
        >>> table = "21 1 0:5 / /data rw - nfs4 server:/export rw"
        >>> journal_mode("/data/run.db", table), journal_mode("/home/run.db", table)
        ('TRUNCATE', 'WAL')
    """
    return "TRUNCATE" if is_network(file_system(path, mountinfo)) else "WAL"


def file_system(path: str | os.PathLike[str], mountinfo: str | None = None) -> str:
    """Name the type of the file system that holds ``path``; empty where unknown."""
    text = _read_mountinfo() if mountinfo is None else mountinfo
    absolute = os.path.realpath(path)
    if absolute.startswith("\\\\"):
        return "cifs"
    best, kind = "", ""
    for point, kind_here in _mounts(text):
        # a later mount on the same point hides the earlier one
        if _inside(absolute, point) and len(point) >= len(best):
            best, kind = point, kind_here
    return kind


def is_network(kind: str) -> bool:
    """Tell whether a file system of this type may be served by another machine."""
    # FUSE (sshfs, s3fs, rclone, ...) says nothing about its back end: be safe
    return kind in NETWORK_TYPES or kind.startswith("fuse.")


def _read_mountinfo() -> str:
    try:
        return MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _mounts(text: str) -> list[tuple[str, str]]:
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if separator and len(fields) >= 5 and right.split():
            mounts.append((_unescape(fields[4]), right.split()[0]))
    return mounts


def _unescape(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)


def _inside(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point.rstrip("/") + "/")
