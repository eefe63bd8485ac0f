"""The ways for files from one directory to others that scripts/bench compares. All ends are on this machine.

A way has an `outbox` and an inbox for each receiver, directories both, and brings below every inbox what `put` copies
into the outbox. Those that watch do it by themselves; to the others `put` says the name when cp has returned.
"""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
import urllib.request

import rig
from rig import Child, Group, name_of, run, wait

HERE = os.path.dirname(os.path.abspath(__file__))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Way:
    name = title = ""
    needs = {}  # command → Debian package
    watches = False
    # Whether a name can stand in the inbox before all of its file does: then its size is looked at too.
    in_parts = False
    probes = 200  # how many single files one after the other say how long one takes
    short_lived = False  # whether processes begin and end while files travel

    def __init__(self, base, receivers):
        self.base = tempfile.mkdtemp(prefix=f"{self.name}-", dir=base)
        self.receivers = receivers
        self.outbox = os.path.join(self.base, "outbox")
        self.inboxes = [os.path.join(self.base, f"inbox{n}") for n in range(receivers)]
        self.children, self.most = [], 0

    def __enter__(self):
        try:
            for path in [self.outbox, *self.inboxes]:
                os.makedirs(path)
            self.start()
            self.warm_up()
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        self.stop()
        for child in self.children:
            child.stop()
        if not rig.mounted_below(self.base):
            shutil.rmtree(self.base, ignore_errors=True)

    def start(self):
        pass

    def stop(self):
        pass

    def warm_up(self):
        source = rig.make(os.path.join(self.base, "warm"), 4 * rig.KIB)
        self.put(source, "warm")
        self.arrive({"": {"warm": 4 * rig.KIB}})
        self.rest()

    def child(self, *args, **more):
        child = Child(os.path.join(self.base, f"log{len(self.children)}"), *args, **more)
        self.children.append(child)
        return child

    def put(self, source, name):
        """Copies a file or tree into the outbox; gives when cp returned, and its CPU."""
        cpu = rig.command("cp", "-r", source, os.path.join(self.outbox, name))
        closed = time.monotonic()
        self.announce(name)
        return closed, cpu

    def write(self, source, name):
        """The same for a small file, by a write of our own."""
        with open(source, "rb") as file:
            content = file.read()
        with open(os.path.join(self.outbox, name), "wb", buffering=0) as file:
            file.write(content)
        closed = time.monotonic()
        self.announce(name)
        return closed, 0

    def announce(self, name):
        """Says that this name is whole; for those that do not watch."""

    def rest(self):
        """Waits until what was put before is done with."""

    # Arrival

    def arrive(self, tree, pause=rig.LOOK_BULK):
        """Waits until all files are in every inbox. `tree`: directory → name of a file in it → size."""
        left = [(os.path.join(inbox, where), files) for inbox in self.inboxes for where, files in tree.items()]
        while left:
            while left and self.complete(*left[-1]):
                left.pop()
            if left:
                if self.short_lived:
                    self.most = max(self.most, rig.rss_max_of(self.pids()))
                time.sleep(pause)

    def complete(self, where, files):
        try:
            if len(files) > 1:
                if not files.keys() <= set(os.listdir(where)):
                    return False
                if not self.in_parts:
                    return True
            return all(os.stat(os.path.join(where, name)).st_size == size for name, size in files.items())
        except FileNotFoundError:
            return False

    # Cost

    def pids(self):
        return [child.pid for child in self.children]

    def cpu(self):
        return rig.cpu_of(self.pids())

    def forget_rss(self):
        self.most = 0
        rig.forget_rss(self.pids())

    def rss_max(self):
        return max(self.most, rig.rss_max_of(self.pids())) or None


class Native(Way):
    """cp into the receivers' directories: what a copy of the bytes costs."""

    name, title, probes = "native", "cp", 0

    def put(self, source, name):
        cpu = sum(rig.command("cp", "-r", source, os.path.join(inbox, name)) for inbox in self.inboxes)
        return time.monotonic(), cpu


class Tcp(Way):
    """One bare TCP connection, SHA-256 at both ends."""

    name, title = "tcp", "TCP + SHA-256"
    program = [os.path.join(HERE, "tcp.py")]

    def start(self):
        receivers = [self.child(*self.program, "receive", inbox) for inbox in self.inboxes]
        self.sender = self.child(*self.program, "send", self.outbox, *[child.line() for child in receivers])
        self.sender.line()

    def announce(self, name):
        self.sender.tell(name)

    def stop(self):
        # The sender first: at its end the receivers end by themselves.
        for child in reversed(self.children):
            child.stop(by_itself=True)


class Iroh(Tcp):
    """One bare stream of one iroh connection, SHA-256 at both ends."""

    name, title = "iroh", "iroh stream"
    program = [os.path.join(rig.TARGET, "release", "examples", "iroh_stream")]


class Rsync(Way):
    """inotifywait, and rsync to a daemon on loopback."""

    name, title, probes = "rsync", "inotify + rsync", 50
    needs = {"rsync": "rsync", "inotifywait": "inotify-tools"}
    watches = in_parts = short_lived = True

    def start(self):
        urls = []
        for number, inbox in enumerate(self.inboxes):
            conf, port = os.path.join(self.base, f"rsyncd{number}.conf"), free_port()
            owner = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
            with open(conf, "w") as file:
                file.write(f"use chroot = no\n[inbox]\npath = {inbox}\nread only = no\n{owner}")
            self.child("rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={conf}")
            urls.append(f"rsync://127.0.0.1:{port}/inbox/")
            wait(lambda: reachable(port), "rsync's daemon", 0.02)
        watcher = self.child(os.path.join(HERE, "watch-rsync"), self.outbox, *urls)
        wait(lambda: "Watches established" in open(watcher.log).read(), "inotifywait", 0.02)


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Syncthing(Way):
    """Syncthing with its shortest watcher delay, 1 s; all devices know each other, and nobody else."""

    name, title, probes = "syncthing", "Syncthing, delay 1 s", 10
    needs = {"syncthing": "syncthing"}
    watches = True

    def start(self):
        self.devices = [Device(self.base, n, path) for n, path in enumerate([self.outbox, *self.inboxes])]
        for device in self.devices:
            device.configure(self.devices)
        for device in self.devices:
            env = dict(os.environ, STNODEFAULTFOLDER="1", STNOUPGRADE="1", HOME=device.home)
            self.child("syncthing", "serve", f"--home={device.home}", "--no-browser", "--no-restart", env=env)
        for device in self.devices:
            wait(lambda: device.connected() == self.receivers, "Syncthing is connected", 0.05)
        self.rest()

    def rest(self):
        for device in self.devices:
            wait(device.idle, "Syncthing is idle", 0.05)


class Device:
    """One Syncthing."""

    def __init__(self, base, number, folder):
        self.home, self.folder, self.number = os.path.join(base, f"home{number}"), folder, number
        self.port, self.gui, self.key = free_port(), free_port(), "bench"
        run("syncthing", "generate", f"--home={self.home}", "--no-default-folder")
        self.id = run("syncthing", f"--home={self.home}", "--device-id").strip()

    def configure(self, devices):
        known = "".join(f'<device id="{d.id}" name="{name_of(d.number)}"><address>tcp://127.0.0.1:{d.port}</address></device>'
                        for d in devices)
        shared = "".join(f'<device id="{d.id}"></device>' for d in devices)
        kind = "receiveonly" if self.number else "sendonly"
        off = ["globalAnnounceEnabled", "localAnnounceEnabled", "relaysEnabled", "natEnabled", "crashReportingEnabled",
               "startBrowser", "setLowPriority", "announceLANAddresses"]
        options = "".join(f"<{option}>false</{option}>" for option in off)
        with open(os.path.join(self.home, "config.xml"), "w") as file:
            file.write(f"""<configuration version="36">
<folder id="share" path="{self.folder}" type="{kind}" rescanIntervalS="3600" fsWatcherEnabled="true" fsWatcherDelayS="1">
{shared}<minDiskFree unit="">0</minDiskFree></folder>
{known}
<gui enabled="true"><address>127.0.0.1:{self.gui}</address><apikey>{self.key}</apikey></gui>
<options><listenAddress>tcp://127.0.0.1:{self.port}</listenAddress>{options}
<reconnectionIntervalS>1</reconnectionIntervalS><urAccepted>-1</urAccepted><autoUpgradeIntervalH>0</autoUpgradeIntervalH>
</options></configuration>""")

    def ask(self, what):
        request = urllib.request.Request(f"http://127.0.0.1:{self.gui}/rest/{what}", headers={"X-API-Key": self.key})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return json.load(reply)
        except OSError:
            return {}

    def connected(self):
        return sum(peer["connected"] for peer in self.ask("system/connections").get("connections", {}).values())

    def idle(self):
        status = self.ask("db/status?folder=share")
        return status.get("state") == "idle" and status.get("needFiles") == 0


class Meshbox(Way):
    """Daemons of Meshbox with their default settings."""

    name, title, watches = "meshbox", "Meshbox", True
    more = ()

    def start(self):
        self.group = Group(self.base, 1 + self.receivers, self.more)
        self.nodes = self.group.__enter__()
        self.outbox, self.inboxes = self.nodes[0].outbox(), [node.inbox() for node in self.nodes[1:]]

    def stop(self):
        if hasattr(self, "group"):
            self.group.__exit__()

    def rest(self):
        wait(self.nodes[0].idle, "receipts", 0.02)

    def pids(self):
        return [node.pid for node in self.nodes]


class AtOnce(Meshbox):
    """Meshbox that does not wait for a file to settle."""

    name, title, more = "meshbox_settle_0", "Meshbox, settle = 0", ("--settle", "0ms")


WAYS = {way.name: way for way in (Native, Tcp, Iroh, Rsync, Syncthing, Meshbox, AtOnce)}
