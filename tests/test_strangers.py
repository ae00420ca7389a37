"""What strangers reach of a run: other machines nothing, other users nothing without the run's token."""

import ipaddress
import stat
from pathlib import Path

import psutil
import pytest

from tests.processes import Run
from tests.test_launch import PARALLEL, frames_so_far

pytestmark = pytest.mark.cluster

# A method of every service that runs code, reads data or ends something.
WORKER = ("CoreWorkerService/PushTask", "CoreWorkerService/KillActor", "CoreWorkerService/Exit")
METHODS = {
    "gcs_server": (
        "InternalKVGcsService/InternalKVKeys",
        "InternalKVGcsService/InternalKVPut",
        "JobInfoGcsService/AddJob",
        "ActorInfoGcsService/RegisterActor",
        "NodeInfoGcsService/GetClusterId",
    ),
    # Its two ports: node manager and object manager.
    "raylet": (
        "NodeManagerService/RequestWorkerLease",
        "NodeManagerService/ShutdownRaylet",
        "ObjectManagerService/Push",
        "ObjectManagerService/Pull",
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with Run(*PARALLEL, "--total-frames", 10**8, "--run-dir", folder / "a", cwd=folder) as run:
        run.wait_until(lambda: frames_so_far(folder / "a") > 500)
        yield run


def descendants(run):
    """Also those that have overwritten their environment by giving themselves a name."""
    driver = psutil.Process(run.process.pid)
    return [driver, *driver.children(recursive=True)]


def listening(run):
    """The name of every process of a run that listens, with the address."""
    # A name that a process has given to itself is cut off after 15 bytes.
    found = [
        (process.name()[:15], connection.laddr)
        for process in descendants(run)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert any(name.startswith("ray::Collector") for name, _ in found)
    return found


def test_nothing_of_a_run_listens_to_other_machines(run):
    for name, address in listening(run):
        ip = ipaddress.ip_address(address.ip)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        assert ip.is_loopback, (name, address)


def test_every_port_refuses_calls_without_the_token(run):
    grpc = pytest.importorskip("grpc")
    refused = set()
    for name, address in listening(run):
        with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
            for method in METHODS.get(name, WORKER):
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
                # A port does not know the methods of another one.
                assert error.value.code().name in ("UNAUTHENTICATED", "UNIMPLEMENTED"), (name, method)
                if error.value.code().name == "UNAUTHENTICATED":
                    refused.add(method)
    assert refused == {*WORKER, *METHODS["gcs_server"], *METHODS["raylet"]}


def test_no_other_user_can_connect_to_a_socket_or_replace_it(run):
    paths = set()
    for process in descendants(run):
        for connection in process.net_connections("unix"):
            if connection.laddr:
                paths.add(connection.laddr)
    assert any(path.endswith("plasma_store") for path in paths)
    for path in map(Path, paths):
        # An abstract name would be open to everybody.
        assert path.is_absolute(), path
        assert path.owner() == Path("/proc/self").owner()
        # Some folder above is closed to others.
        assert any(stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 for folder in path.parents), path
