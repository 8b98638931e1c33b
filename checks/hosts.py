"""Train on two hosts, which are network namespaces of this machine with a cable between them; then stop one, and cut the cable.

python checks/hosts.py      # as root, on Linux, with `ip` and the mpich wheel; half a minute

The processes see two host names and reach each other by TCP alone. Shows that the weights are those of one process, how many
bytes went through the cable, and that a stopped host and a cut cable end all processes within the deadline.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
HOSTS = {"nnlite-a": "10.77.0.1", "nnlite-b": "10.77.0.2"}
# In place of ssh: `[-x] host command`.
REMOTE = f"""#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
[[ $host == {HOSTS["nnlite-a"]} ]] && name=nnlite-a || name=nnlite-b
exec ip netns exec $name unshare --uts bash -c "hostname $name; $*"
"""
EXAMPLE = ("examples/cifar10.py", "--data", "shapes", "--limit", "1000", "--epochs", "1")


def ip(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True).stdout


@contextmanager
def two_hosts() -> Iterator[None]:
    names = list(HOSTS)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable-a", "netns", names[0], "type", "veth", "peer", "name", "cable-b", "netns", names[1])
        for name, address in HOSTS.items():
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"cable-{name[-1]}")
            ip("-n", name, "link", "set", f"cable-{name[-1]}", "up")
        yield
    finally:
        for name in names:
            ip("netns", "delete", name, check=False)


def received() -> int:
    """Bytes that have come through the cable to the second host."""
    (link,) = json.loads(ip("-n", "nnlite-b", "-json", "-s", "link", "show", "cable-b"))
    return int(link["stats64"]["rx"]["bytes"])


def start(folder: Path, *script: object) -> "subprocess.Popen[str]":
    remote = folder / "remote"
    remote.write_text(REMOTE)
    remote.chmod(0o700)
    launch = ["ip", "netns", "exec", "nnlite-a", MPIEXEC, "-genv", "UCX_TLS", "tcp", "-hosts", ",".join(HOSTS.values())]
    launch += ["-ppn", 1, "-n", 2, "-launcher", "ssh", "-launcher-exec", remote, "-iface", "cable-a", sys.executable, *script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NNLITE_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, launch)), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ps() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def weights(text: str) -> str:
    found = re.search(r"weights (\w+)", text)
    assert found, text
    return found.group(1)


def main() -> None:
    with two_hosts(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = received()
        out, _ = start(folder, *EXAMPLE, "--distributed", "--deterministic", "--out", folder / "two").communicate(timeout=120)
        assert len(set(re.findall(r"process \d+ on ([\w-]+)", out))) == 2, out
        print(f"two hosts: weights {weights(out)}, {(received() - before) / 1e6:.1f} MB came through the cable")
        command = [sys.executable, *EXAMPLE, "--out", folder / "one"]
        one = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True).stdout
        print(f"one process: weights {weights(one)}")
        assert weights(out) == weights(one)

        begun = time.monotonic()
        process = start(folder, "tests/ranks/faults.py", "stop", folder / "stopped")
        out, _ = process.communicate(timeout=60)
        assert process.returncode and "rank 1 did not come to the sum of gradients within 3 s" in out, out
        print(f"a stopped host: all ended after {time.monotonic() - begun:.1f} s, the deadline is 3 s")

        process = start(folder, "tests/ranks/faults.py", "long", folder / "cut")
        while not (folder / "cut" / "begun").exists():
            time.sleep(0.05)
        ip("-n", "nnlite-b", "link", "set", "cable-b", "down")
        begun = time.monotonic()
        out, _ = process.communicate(timeout=60)
        assert process.returncode and "did not come to" in out, out
        left = [line for line in ps() if str(folder) in line]
        while left and time.monotonic() - begun < 13:
            time.sleep(0.2)
            left = [line for line in ps() if str(folder) in line]
        assert not left, left
        print(f"a cut cable: all ended after {time.monotonic() - begun:.1f} s, the deadline is 3 s")


if __name__ == "__main__":
    main()
