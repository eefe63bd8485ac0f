"""What the suites of scripts/bench-mesh share: namespaces on one bridge with shaped links, and daemons in them.

    with Net(3) as net, Group(net, [0, 1, 2]) as (alder, birch, cedar):
        net.shape(0, "100mbit")
        …

Everything made here is taken away by the context managers, also after an exception.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

BIN = os.environ.get("MESHBOX_BIN", "")
BASE = os.environ.get("BENCH_DIR", "")
SCALE = int(os.environ.get("BENCH_SCALE", "1"))
TICK = os.sysconf("SC_CLK_TCK")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LIMIT = 600  # seconds that anything may take
NAMES = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "gorse", "hazel"]

# A suite that is asked to end takes away what it made.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(*args, timeout=60):
    return subprocess.run(args, check=True, capture_output=True, text=True, timeout=timeout).stdout


def row(what, figure, goal=""):
    print(f"| {what} | {figure} | {goal} |", flush=True)


def note(text):
    print(text, flush=True)


def wait(done, what, pause=0.01, limit=LIMIT):
    end = time.monotonic() + limit
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"not within {limit} s: {what}")
        time.sleep(pause)


def visible(paths, pause=0.005):
    """Waits until all paths are there."""
    for path in paths:
        wait(lambda: os.path.exists(path), path, pause)


def make(path, size):
    """A file of random bytes, its pages written back, so that measuring does not pay for it."""
    with open(path, "wb") as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(left, MIB)))
        file.flush()
        os.fsync(file.fileno())
    return path


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


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


class Node:
    """A daemon with fresh state. Without `net`, on loopback."""

    def __init__(self, base, name, net=None, n=0, ticket=None, more=()):
        self.root = os.path.join(base, name)
        self.mount, self.state = os.path.join(self.root, "share"), os.path.join(self.root, "state")
        self.net, self.n, self.name, self.more = net, n, name, list(more)
        os.makedirs(self.mount)
        self.start("--join", ticket) if ticket else self.start()

    def start(self, *more):
        enter = self.net.enter(self.n) if self.net else []
        addr = self.net.addr(self.n) if self.net else "127.0.0.1"
        run(*enter, BIN, "mount", self.mount, "--state", self.state, "--name", self.name, "--listen", f"{addr}:0", "--no-mdns",
            *self.more, *more)
        self.pid = next(iter(processes(self.root)), None)
        if self.pid is None:
            raise SystemExit(f"no daemon of {self.root}")

    def outbox(self, *path):
        return os.path.join(self.mount, "outbox", *path)

    def inbox(self, *path):
        return os.path.join(self.mount, "inbox", *path)

    def ticket(self):
        return run(BIN, "ticket", "--state", self.state).strip()

    def status(self):
        return json.loads(run(BIN, "status", "--json", "--state", self.state))

    def counts(self):
        return self.status()["counts"]

    def cpu(self):
        """Seconds of CPU so far, user and system."""
        fields = open(f"/proc/{self.pid}/stat").read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def rss_max(self):
        for line in open(f"/proc/{self.pid}/status"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
        return 0

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def stop(self):
        """Ends the daemon in whatever state it is; nothing stays mounted."""
        try:
            subprocess.run([BIN, "umount", self.mount], capture_output=True, timeout=20)
        except subprocess.TimeoutExpired:
            pass
        for pid in processes(self.root):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        if f" {self.mount} " in open("/proc/self/mountinfo").read():
            subprocess.run(["umount", "-l", self.mount])


class Group:
    """Daemons that are connected with the first, ended on the way out. `where` are numbers in `net`."""

    def __init__(self, net, where, more=()):
        self.net, self.where, self.more, self.nodes = net, where, more, []

    def __enter__(self):
        self.base = tempfile.mkdtemp(prefix="group-", dir=BASE)
        try:
            ticket = None
            for n, name in zip(self.where, NAMES):
                self.nodes.append(Node(self.base, name, self.net, n, ticket, self.more))
                ticket = ticket or self.nodes[0].ticket()
            for node in self.nodes:
                wait(lambda: sum(p["connected"] for p in node.status()["peers"]) == len(self.nodes) - 1, "connected")
            return self.nodes
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for node in self.nodes:
            node.stop()
        if self.base not in open("/proc/self/mountinfo").read():
            shutil.rmtree(self.base, ignore_errors=True)


def processes(root):
    """Daemons of this binary whose command line names something below `root`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/exe") == BIN and os.fsencode(root) in open(f"/proc/{pid}/cmdline", "rb").read():
                found.append(int(pid))
        except OSError:
            pass
    return found


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
