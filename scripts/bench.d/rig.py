"""What the benches share: sizes, bounded commands, processes and their cost, daemons of Meshbox, waiting, and comparing.

Everything lies below one directory, and every process that outlives a command names it in its command line: so what is left
can be found and ended, however a bench ended.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.realpath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
BIN = os.environ.get("MESHBOX_BIN") or os.path.join(TARGET, "release", "meshbox")
TICK = os.sysconf("SC_CLK_TCK")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LIMIT = 300  # seconds that anything may take
NAMES = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "gorse", "hazel"]


def name_of(number):
    """The name of daemon `number`, from 0."""
    return NAMES[number] if number < len(NAMES) else f"tree{number}"


# Commands and processes


def run(*args, timeout=60):
    return subprocess.run(args, check=True, capture_output=True, text=True, timeout=timeout).stdout


class Late(Exception):
    """Something took longer than it may."""


@contextlib.contextmanager
def limit(seconds, what):
    """Ends what is done inside after so many seconds, also a system call that hangs."""

    def late(*_):
        raise Late(f"not within {seconds} s: {what}")

    before, begun = signal.signal(signal.SIGALRM, late), time.monotonic()
    outer = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        # A limit around this one goes on.
        signal.alarm(max(1, int(outer - (time.monotonic() - begun))) if outer else 0)


def command(*args):
    """Runs a command to its end, with as little around it as possible; gives the seconds of CPU it took."""
    silent = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    pid = os.posix_spawnp(args[0], args, os.environ, file_actions=silent)
    try:
        _, status, usage = os.wait4(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    if status:
        raise OSError(f"{' '.join(args)}: status {status}")
    return usage.ru_utime + usage.ru_stime


def ends_with_parent(by=signal.SIGKILL):
    """Has the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(1, by)  # PR_SET_PDEATHSIG


class Child:
    """A process in the background, with its messages in a log; it ends when the bench does."""

    def __init__(self, log, *args, **more):
        self.args = args
        with open(log, "ab") as err:
            more = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": err} | more
            self.process = subprocess.Popen(args, preexec_fn=ends_with_parent, start_new_session=True, text=True, **more)
        self.log, self.pid = log, self.process.pid

    def line(self):
        """The next line that it prints."""
        text = self.process.stdout.readline().strip()
        if not text:
            raise SystemExit(f"{' '.join(self.args)} ended: {open(self.log).read()[-2000:]}")
        return text

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self, by_itself=False):
        """Ends it; with `by_itself` it has some seconds after the end of its input."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        if by_itself:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        below = tree_of([self.pid])[1:]
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)
        for pid in below:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


# The cost of processes


def tree_of(pids):
    """These processes and all below them, those first."""
    found, left = [], list(pids)
    while left:
        pid = left.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    left += map(int, file.read().split())
    return found


def cpu_of(pids):
    """Seconds of CPU so far of these processes, all below them, and all that have ended below them."""
    ticks = 0
    for pid in tree_of(pids):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            ticks += sum(map(int, file.read().rsplit(") ", 1)[1].split()[11:15]))
    return ticks / TICK


def memory_of(pid, key):
    """A line of /proc/PID/status in bytes: VmRSS now, VmHWM at most."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * KIB
    return 0


def rss_max_of(pids):
    """The largest resident set that one of these processes, or one below them, has had."""
    return max((memory_of(pid, "VmHWM") for pid in tree_of(pids)), default=0)


def forget_rss(pids):
    """From here on `rss_max_of` is that of what follows."""
    for pid in tree_of(pids):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")


# Daemons


def mounted_below(path):
    with open("/proc/self/mountinfo") as file:
        found = [line.split()[4] for line in file]
    return [mount for mount in found if (mount + "/").startswith(path + "/")]


def processes(root):
    """Daemons of this binary whose command line names something below `root`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/exe") == BIN and os.fsencode(root + "/") in open(f"/proc/{pid}/cmdline", "rb").read():
                found.append(int(pid))
    return found


class Node:
    """A daemon with fresh state, on loopback unless `enter` is what a command begins with to run elsewhere."""

    def __init__(self, base, name, ticket=None, enter=(), addr="127.0.0.1", more=()):
        self.root = os.path.join(base, name)
        self.mount, self.state = os.path.join(self.root, "share"), os.path.join(self.root, "state")
        self.name, self.enter, self.addr, self.more = name, list(enter), addr, list(more)
        os.makedirs(self.mount)
        self.start("--join", ticket) if ticket else self.start()

    def start(self, *more):
        run(*self.enter, BIN, "mount", self.mount, "--state", self.state, "--name", self.name,
            "--listen", f"{self.addr}:0", "--no-mdns", *self.more, *more)
        self.pid = next(iter(processes(self.root)), None)
        if self.pid is None:
            raise SystemExit(f"no daemon of {self.root}")

    def restart(self):
        run(BIN, "umount", self.mount)
        self.start()

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

    def connected(self):
        return sum(peer["connected"] for peer in self.status()["peers"])

    def idle(self):
        """Whether all that was closed here has arrived everywhere."""
        counts = self.counts()
        return counts["outbound_pending"] == 0 and counts["unsealed"] == 0

    def cpu(self):
        return cpu_of([self.pid])

    def rss(self):
        return memory_of(self.pid, "VmRSS")

    def rss_max(self):
        return memory_of(self.pid, "VmHWM")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def stop(self):
        """Ends the daemon in whatever state it is; nothing stays mounted."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([BIN, "umount", self.mount], capture_output=True, timeout=20)
        for pid in processes(self.root):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if mounted_below(self.mount):
            lazily = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*lazily, self.mount], capture_output=True, timeout=20)


class Group:
    """Daemons that are all connected with each other, ended on the way out."""

    def __init__(self, base, count, more=(), place=lambda number: {}):
        self.count, self.more, self.place, self.nodes = count, more, place, []
        self.base = tempfile.mkdtemp(prefix="group-", dir=base)

    def __enter__(self):
        try:
            ticket = None
            for number in range(self.count):
                self.nodes.append(Node(self.base, name_of(number), ticket, more=self.more, **self.place(number)))
                ticket = ticket or self.nodes[0].ticket()
            for node in self.nodes:
                wait(lambda: node.connected() == self.count - 1, "connected", 0.02)
            return self.nodes
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for node in self.nodes:
            node.stop()
        if not mounted_below(self.base):
            shutil.rmtree(self.base, ignore_errors=True)


# Waiting, making, comparing


def wait(done, what, pause=0.01, within=LIMIT):
    end = time.monotonic() + within
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"not within {within} s: {what}")
        time.sleep(pause)


# How often one looks for what arrives. A look is a LOOKUP that the receiving daemon answers: without a pause it took one
# of two cores from what is measured.
LOOK = 0.0002
LOOK_BULK = 0.005


def visible(paths, pause=LOOK_BULK):
    """Waits until all paths are there."""
    for path in paths:
        wait(lambda: os.path.exists(path), path, pause)


def make(path, size):
    """A file of random bytes, its pages written back, so that measuring does not pay for it."""
    with open(path, "wb") as file:
        left = size
        while left > 0:
            left -= file.write(random.randbytes(min(left, MIB)))
        file.flush()
        os.fsync(file.fileno())
    return path


def make_tree(top, dirs, files, size):
    """A new directory of `dirs` directories with `files` files each."""
    for d in range(dirs):
        os.makedirs(os.path.join(top, f"d{d}"))
        for f in range(files):
            with open(os.path.join(top, f"d{d}", f"f{f}"), "wb") as file:
                file.write(random.randbytes(size))
    os.sync()
    return top


def shm_has(need):
    """Whether /dev/shm is a tmpfs with so many bytes free."""
    with open("/proc/self/mounts") as file:
        tmpfs = any(line.split()[1:3] == ["/dev/shm", "tmpfs"] for line in file)
    return tmpfs and shutil.disk_usage("/dev/shm").free >= need


def files_below(*path):
    return sum(len(files) for _, _, files in os.walk(os.path.join(*path)))


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def same(source, target):
    """Compares every byte of a file or tree."""
    done = subprocess.run(["diff", "-rq", source, target], capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise AssertionError(f"{target} differs: {(done.stdout or done.stderr)[:500]}")


median = statistics.median


def ends_when_told():
    """A bench that is asked to end takes away what it made."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
