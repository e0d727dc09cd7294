"""The journal is chosen by the type of the mount that holds the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadygrad.runlog import filesystem

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 0:40 / /home rw - nfs4 server:/home rw
32 31 0:41 / /home/fast rw shared:1 master:2 - xfs /dev/vdb rw
33 27 0:42 / /mnt/with\\040space rw - fuse.sshfs user@host: rw
34 27 0:43 / /twice rw - nfs host:/a rw
35 27 0:44 / /twice rw - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind", "mode"),
    [
        ("/var/run.db", "ext4", "WAL"),
        ("/home/me/run.db", "nfs4", "TRUNCATE"),
        ("/homes/me/run.db", "ext4", "WAL"),
        ("/home/fast/run.db", "xfs", "WAL"),
        ("/mnt/with space/run.db", "fuse.sshfs", "TRUNCATE"),
        ("/twice/run.db", "tmpfs", "WAL"),
    ],
)
def test_the_deepest_mount_decides(path: str, kind: str, mode: str) -> None:
    assert filesystem.file_system(path, TABLE) == kind
    assert filesystem.journal_mode(path, TABLE) == mode


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "ceph", "fuse.sshfs", "fuse.rclone"]
)
def test_network_types_avoid_wal(kind: str) -> None:
    table = f"1 0 0:1 / / rw - {kind} somewhere rw"
    assert filesystem.journal_mode("/run.db", table) == "TRUNCATE"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    table = f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path}/real rw - nfs b rw"
    assert filesystem.journal_mode(tmp_path / "link" / "run.db", table) == "TRUNCATE"


def test_without_a_mount_table_wal_is_used() -> None:
    assert filesystem.journal_mode("/run.db", "") == "WAL"


def test_the_real_mount_table_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 0 0:1 / / rw - nfs a rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", table)
    assert filesystem.journal_mode("/run.db") == "TRUNCATE"
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "missing")
    assert filesystem.journal_mode("/run.db") == "WAL"
