"""The way of a small file from its close to everybody's knowledge, step by step, as it can be seen from outside: inotify on
both state directories tells when each step touches the disk. Nothing in the daemons is changed for it."""

import contextlib
import ctypes
import os
import random
import struct
import threading
import time

import rig
from rig import KIB, LOOK, median, wait

MODIFY, MOVED_TO, CREATE = 0x2, 0x80, 0x100
EVENT = struct.Struct("iIII")
SENDER, RECEIVER = 0, 1

# What happens, at which end, in which directory of the state, by which event, and how much of the 4 ms it may take. Each is
# looked for behind the one before it. The settle time is 2 ms of the second.
STEPS = (
    ("the close is in the sender's log", SENDER, "wal", MODIFY, 0.1),
    ("settled, hashed, linked", SENDER, "content", CREATE, 2.4),
    ("sealed: in the sender's log", SENDER, "wal", MODIFY, 0.3),
    ("the bytes come to the receiver", RECEIVER, "partial", CREATE, 0.4),
    ("renamed into the inbox", RECEIVER, "inbox", MOVED_TO, 0.5),
    ("visible through the mount", RECEIVER, None, None, 0.3),
    ("received: in the receiver's log", RECEIVER, "wal", MODIFY, None),
    ("delivered: in the sender's log", SENDER, "wal", MODIFY, None),
)


class Watch:
    """Notes when something happens below the state of each node."""

    def __init__(self, nodes):
        self.libc, self.where, self.events = ctypes.CDLL(None, use_errno=True), {}, []
        self.fd = self.libc.inotify_init1(os.O_CLOEXEC)
        for end, node in enumerate(nodes):
            for path, _, _ in os.walk(node.state):
                self.add(end, node, path)
        threading.Thread(target=self.read, daemon=True).start()

    def add(self, end, node, path):
        number = self.libc.inotify_add_watch(self.fd, os.fsencode(path), MODIFY | MOVED_TO | CREATE)
        if number < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {path}")
        self.where[number] = end, os.path.relpath(path, node.state).split("/")[0]

    def read(self):
        # Late on a busy machine, several events would seem to be one.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while True:
            data, now, at = os.read(self.fd, 64 * KIB), time.monotonic(), 0
            while at < len(data):
                number, mask, _, length = EVENT.unpack_from(data, at)
                at += EVENT.size + length
                self.events.append((now, *self.where.get(number, (None, "")), mask))


def followed(events, begun, seen):
    """When each step happened after `begun`; None for one that did not."""
    left, times = [event for event in events if event[0] >= begun], []
    for _, end, directory, kind, _ in STEPS:
        if directory is None:
            times.append(seen - begun)
            continue
        for number, (when, *what, mask) in enumerate(left):
            if what == [end, directory] and mask & kind:
                times.append(when - begun)
                left = left[number + 1 :]
                break
        else:
            times.append(None)
    return times


def steps(base, scale, row):
    with rig.Group(base, 2) as nodes:
        alder, birch = nodes
        # Directories below content/ are made once; the watches are on what is there.
        for prefix in range(256):
            for node in nodes:
                os.makedirs(os.path.join(node.state, "content", f"{prefix:02x}"), mode=0o700, exist_ok=True)
        watch, all_times = Watch(nodes), []
        for number in range(100 // scale):
            name, content = f"f{number}", random.randbytes(4 * KIB)
            watch.events.clear()
            file = os.open(alder.outbox(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, content)
            begun = time.monotonic()
            os.close(file)
            while not os.path.exists(birch.inbox(name)):
                time.sleep(LOOK)
            seen = time.monotonic()
            wait(alder.idle, "receipts", 0.02)
            with open(birch.inbox(name), "rb") as there:
                assert there.read() == content, f"{name} differs"
            all_times.append(followed(list(watch.events), begun, seen))
        before = 0
        for (what, _, directory, _, budget), times in zip(STEPS, zip(*all_times)):
            times = [at for at in times if at is not None]
            if not times:
                row(f"4 KiB, {what}", "not seen", "")
                continue
            at = median(times) * 1000
            row(f"4 KiB, {what}", f"after {at:.2f} ms (+ {at - before:.2f})", f"+ ≤ {budget} ms" if budget else "")
            # Looking takes its time; the next step did not wait for it.
            before = at if directory else before
