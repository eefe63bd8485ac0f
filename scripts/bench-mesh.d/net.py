"""What the suites of scripts/bench-mesh share: namespaces on one bridge with shaped links, and daemons in them.

    with Net(3) as net, Group(net, [0, 1, 2]) as (alder, birch, cedar):
        net.shape(0, "100mbit")
        …

Everything made here is taken away by the context managers, also after an exception.
"""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bench.d"))

import rig
from rig import BIN, GIB, KIB, MIB, make, percentile, run

BASE = os.environ.get("BENCH_DIR", "")
SCALE = int(os.environ.get("BENCH_SCALE", "1"))
LIMIT = 600  # seconds that anything may take

# A suite that is asked to end takes away what it made.
rig.ends_when_told()


def row(what, figure, goal=""):
    print(f"| {what} | {figure} | {goal} |", flush=True)


def note(text):
    print(text, flush=True)


def wait(done, what, pause=0.01, limit=LIMIT):
    rig.wait(done, what, pause, limit)


def visible(paths, pause=0.005):
    """Waits until all paths are there."""
    for path in paths:
        wait(lambda: os.path.exists(path), path, pause)


class Net:
    """Namespaces, each with one interface `eth0` on a common bridge; number n has the address 10.77.0.(n+1)."""

    def __init__(self, count):
        self.prefix = f"mbb{os.getpid()}"
        self.count, self.names = count, []

    def __enter__(self):
        try:
            hub = self.add("hub")
            self.ip("hub", "link", "add", "br0", "type", "bridge")
            self.ip("hub", "link", "set", "dev", "br0", "up")
            for n in range(self.count):
                name = self.add(n)
                port = f"p{n}"
                run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
                self.ip("hub", "link", "set", "dev", port, "master", "br0", "up")
                self.ip(n, "addr", "add", f"{self.addr(n)}/24", "dev", "eth0")
                self.ip(n, "link", "set", "dev", "lo", "up")
                self.ip(n, "link", "set", "dev", "eth0", "up")
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def add(self, which):
        name = self.name(which)
        run("ip", "netns", "add", name)
        self.names.append(name)
        return name

    def name(self, which):
        return f"{self.prefix}-{which}"

    def addr(self, n):
        return f"10.77.0.{n + 1}"

    def ip(self, which, *args):
        return run("ip", "-n", self.name(which), *args)

    def enter(self, n):
        """What a command begins with to run on that side; it sees the same file systems as everybody."""
        return ["nsenter", f"--net=/run/netns/{self.name(n)}"]

    def tc(self, n, *args, port=False):
        """`tc` on the interface of number n, or, with `port`, on the bridge's side of it (what it receives)."""
        where, dev = ("hub", f"p{n}") if port else (n, "eth0")
        return run("tc", "-n", self.name(where), *[dev if arg == "DEV" else arg for arg in args])

    def shape(self, n, rate, queue="128kb", port=False):
        """Limits what number n sends (with `port`, what it receives)."""
        self.tc(n, "qdisc", "replace", "dev", "DEV", "root", "tbf", "rate", rate, "burst", "32kb", "limit", queue, port=port)

    def impair(self, n, *what, port=False):
        """`netem` on what number n sends: impair(0, "delay", "25ms", "loss", "1%", "limit", "10000")."""
        self.tc(n, "qdisc", "replace", "dev", "DEV", "root", "netem", *what, port=port)

    def unshape(self, n, port=False):
        self.tc(n, "qdisc", "del", "dev", "DEV", "root", port=port)

    def link(self, n, state):
        """Takes the link of number n "down" or "up"."""
        self.ip("hub", "link", "set", "dev", f"p{n}", state)

    def sent(self, n):
        """Bytes that number n has sent, headers and all."""
        links = json.loads(self.ip(n, "-j", "-s", "link", "show", "dev", "eth0"))
        return links[0]["stats64"]["tx"]["bytes"]


class Group(rig.Group):
    """Daemons that are all connected with each other, ended on the way out. `where` are numbers in `net`; without `net`
    they are on loopback."""

    def __init__(self, net, where, more=()):
        where = list(where)
        place = lambda number: {"enter": net.enter(where[number]), "addr": net.addr(where[number])} if net else {}
        super().__init__(BASE, len(where), more, place)


def left_behind(base):
    """Namespaces, mounts and processes of suites that have ended."""
    left = [f"mount below {base}"] if base in open("/proc/self/mountinfo").read() else []
    names = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    for name in names:
        pid = name.removeprefix("mbb").split("-")[0]
        if name.startswith("mbb") and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            left.append(f"namespace {name}")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.fsencode(base) in open(f"/proc/{pid}/cmdline", "rb").read() and int(pid) != os.getpid():
                left.append(f"process {pid}")
        except OSError:
            pass
    return left
