"""Machines of a network on this one: each has namespaces, a disk and an ssh server of its own, and is on a bridge.

Enters: names and addresses. Leaves: machines that run commands, are cut off, killed and started anew. All is in one PID
namespace, which ends with the test's process however that ends: no process, mount or link is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# The account that the images of clouds have.
USER = "ubuntu"
GATEWAY = "10.77.0.1"
_PACKAGES = {"sshd": "openssh-server", "rsync": "rsync", "ip": "iproute2"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# `read` waits for the end of a pipe that the test holds open, and the namespaces end with their first process.
_NETWORK = """
set -e
ip link add bridge type bridge
ip address add $GATEWAY/24 dev bridge
ip link set bridge up
mount -t tmpfs -o mode=755 disks /mnt
echo up
read -r || true
"""
_MACHINE = """
set -e
root=/mnt/$NAME/root
mkdir -p /mnt/$NAME/changes /mnt/$NAME/work "$root"
mount -t overlay -o lowerdir=/,upperdir=/mnt/$NAME/changes,workdir=/mnt/$NAME/work disk "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mkdir -p "$root/tmp/ray"
mount -t tmpfs -o mode=1777 memory "$root/dev/shm"
mount -t tmpfs -o mode=1777 session "$root/tmp/ray"
for path in $BOUND; do mkdir -p "$root$path"; mount --bind "$path" "$root$path"; done
hostname "$NAME"
echo "127.0.0.1 localhost $NAME" >"$root/etc/hosts"
exec chroot "$root" bash -c '
set -e
echo made
until ip link set eth0 up 2>/dev/null; do sleep 0.05; done
ip link set lo up
ip address add $ADDRESS/24 dev eth0
ip route add default via $GATEWAY
chmod a+rx $READABLE
id $USER >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --password "*" $USER
mkdir -p /run/sshd
ssh-keygen -A >/dev/null
/usr/sbin/sshd -o UsePAM=no
echo up
read -r || true
'
"""


class Network:
    """A bridge, and all that was started on it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._started = process, [process]
        _expect(process, "up")
        self.pid = _first_process(process)

    def keep(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """Wait for this process when the network ends, which ends it."""
        self._started.append(process)
        return process

    def end(self) -> None:
        """End everything on the network."""
        self._process.stdin.close()
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Machine:
    """A machine of a network.

    Args:
        network: network that it is on.
        name: host's name; a machine that is started with the name of another before it has that one's disk.
        address: IPv4 address.
        extra: folders outside of the environment that the machine must be able to read.
    """

    def __init__(self, network: Network, name: str, address: str, extra: tuple[str, ...] = ()) -> None:
        self.name, self.address, self._network = name, address, network
        needed = [*libraries(), sys.prefix, sys.base_prefix, *extra]
        environment = {
            "PATH": _PATH,
            "NAME": name,
            "ADDRESS": address,
            "GATEWAY": GATEWAY,
            "USER": USER,
            # An overlay shows one file system: folders on others are bound.
            "BOUND": " ".join(path for path in needed if os.stat(path).st_dev != os.stat("/").st_dev),
            "READABLE": " ".join({str(folder) for path in needed for folder in (path, *Path(path).parents)}),
        }
        enter = ["nsenter", f"--target={network.pid}", "--pid", "--mount", *_unshare("--ipc", "--uts")]
        self._process = network.keep(_start(enter, _MACHINE, environment))
        _expect(self._process, "made")
        self.pid = _first_process(self._process)
        self._link("add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        self._link("set", name, "master", "bridge", "up")
        _expect(self._process, "up")

    def popen(self, command: str, user: str = USER, **options: object) -> subprocess.Popen[str]:
        """Start a command there, in the home folder of ``user``, without anything of this process's environment."""
        enter = ["nsenter", f"--target={self.pid}", "--all", "--root", "--"]
        login = ["env", "-i", "--chdir=/", f"PATH={_PATH}", "TERM=dumb", "runuser", "-u", user, "--"]
        script = f"export HOME=~{user}; cd; {command}"
        defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([*enter, *login, "bash", "-c", script], **{**defaults, **options})
        return self._network.keep(process)

    def run(self, command: str, user: str = USER, timeout: float = 120) -> str:
        """Run a command to its end and return what it prints.

        Raises:
            AssertionError: it exits with another code than 0.
        """
        process = self.popen(command, user)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{self.name}: {command}: exit code {process.returncode}\n{output}"
        return output

    def path(self, path: str) -> Path:
        """Return where this process finds a file of that machine."""
        return Path(f"/proc/{self.pid}/root{path}")

    def commands(self) -> list[str]:
        """Return the command lines of all processes but those of the machine itself."""
        own = ("bash -c", "sshd", "/usr/sbin/sshd")
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return [line for line in found if not line.startswith(own)]

    def processes(self) -> list[psutil.Process]:
        """Return all its processes."""
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == here:
                    found.append(process)
        return found

    def cut(self) -> None:
        """Take its link down: packets are lost both ways, and nobody is informed."""
        self._link("set", self.name, "down")

    def heal(self) -> None:
        """Take its link up again."""
        self._link("set", self.name, "up")

    def kill(self) -> None:
        """End all of it at once, its network too."""
        psutil.Process(self.pid).kill()
        self._process.wait()

    def _link(self, *arguments: str) -> None:
        # Not in the network's PID namespace: `netns` takes a number of this process's.
        subprocess.run(["nsenter", f"--target={self._network.pid}", "--net", "ip", "link", *arguments], check=True)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a network; what was started on it ends with it."""
    if os.geteuid() != 0:
        pytest.skip("namespaces are made by root only")
    _install_packages()
    made = Network(_start(_unshare(), _NETWORK, {"PATH": _PATH, "GATEWAY": GATEWAY}))
    try:
        yield made
    finally:
        made.end()


def libraries() -> list[str]:
    """Return the folders that this environment's packages are in."""
    folders = {*site.getsitepackages(), *(path for path in sys.path if path.endswith("site-packages"))}
    return sorted(path for path in folders if os.path.isdir(path))


def _install_packages() -> None:
    missing = [package for program, package in _PACKAGES.items() if shutil.which(program, path=_PATH) is None]
    if missing:
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "--quiet"], check=True, env=environment, stdout=subprocess.DEVNULL)
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)


def _unshare(*more: str) -> list[str]:
    return ["unshare", "--mount", "--net", "--pid", *more, "--fork", "--kill-child", "--mount-proc"]


def _start(enter: list[str], script: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*enter, "bash", "-c", script], env=environment, text=True, **pipes)


def _expect(process: subprocess.Popen[str], line: str) -> None:
    said = []
    while not said or said[-1] != line:
        read = process.stdout.readline()
        assert read, f"exit code {process.wait()}: {' '.join(said)}"
        said.append(read.strip())


def _first_process(process: subprocess.Popen[str]) -> int:
    """Return the process that nsenter and unshare have forked for the script."""
    found = psutil.Process(process.pid)
    while found.name() in ("nsenter", "unshare"):
        found = found.children()[0]
    return found.pid
