"""Ceph's RADOS gateway on this machine, as a real S3 server for tests: a monitor, a store in memory, the gateway.

Needs Debian's ceph-mon, ceph-osd, radosgw and ceph-common. It is up in some 10 s and takes 300 MB of memory.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_SECONDS = 60
_CONFIG = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.$pid.asok
auth_allow_insecure_global_id_reclaim = true
# One copy of everything, in few placement groups.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_max_pg_per_osd = 1000
rgw_rados_pool_pg_num_min = 1
# The disk of the machine may be nearly full: nothing is stored there.
mon_data_avail_warn = 1
mon_data_avail_crit = 0
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client.admin]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class RadosGateway:
    """The gateway; :attr:`url` is its endpoint.

    Args:
        folder: Empty folder for its files; short, for it holds sockets.
        access_key: Of its only user.
        secret_key: Of its only user.
    """

    def __init__(self, folder: Path, *, access_key: str, secret_key: str) -> None:
        self._folder = folder
        port, mon_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._stack = ExitStack()
        fsid = str(uuid.uuid4())
        config = folder / "ceph.conf"
        config.write_text(_CONFIG.format(folder=folder, fsid=fsid, port=port, mon_port=mon_port))
        self._config = str(config)
        try:
            self._start_monitor(fsid, mon_port)
            self._start_object_store()
            self._start("radosgw", "-n", "client.admin")
            _wait(lambda: _answers(port), "the gateway answers")
            self._run(
                *("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test"),
                *("--access-key", access_key, "--secret-key", secret_key),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all of it."""
        self._stack.close()

    def _start_monitor(self, fsid: str, port: int) -> None:
        keyring, monmap = str(self._folder / "keyring"), str(self._folder / "monmap")
        everything = [part for daemon in ("mon", "osd", "mgr") for part in ("--cap", daemon, "allow *")]
        self._run("ceph-authtool", keyring, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._start("ceph-mon", "-i", "a")

    def _start_object_store(self) -> None:
        keyring, own = str(self._folder / "keyring"), str(uuid.uuid4())
        self._run("ceph", "osd", "new", own)
        self._run(
            "ceph-authtool", keyring, "--gen-key", "-n", "osd.0", "--cap", "mon", "allow *", "--cap", "osd", "allow *"
        )
        self._run("ceph", "auth", "add", "osd.0", "-i", keyring)
        (self._folder / "osd").mkdir()
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", own)
        self._start("ceph-osd", "-i", "0")
        _wait(lambda: "1 up" in self._run("ceph", "osd", "stat"), "the object store is up")

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [program, "-c", self._config, *arguments]
            if program not in ("ceph-authtool", "monmaptool")
            else [program, *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def _start(self, program: str, *arguments: str) -> None:
        # In the foreground, as children: what is left to wait for is what was started here.
        process = subprocess.Popen(
            [program, "-c", self._config, "-f", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing of theirs is kept
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _wait(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _SECONDS
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"after {_SECONDS} s it is still not so that {what}")
        time.sleep(0.2)
