"""What scripts/bench measures of Meshbox alone. Each part prints its rows by `row(what, figure, goal, seconds or …)`."""

import json
import os
import random
import shutil
import time

import rig
from rig import GIB, KIB, LIMIT, MIB, Child, Group, command, files_below, make, make_tree, run, same, visible, wait
from steps import steps

HERE = os.path.dirname(os.path.abspath(__file__))


# Against a plain directory


def dd(source, target, block):
    begun = time.monotonic()
    command("dd", f"if={source}", f"of={target}", f"bs={block}", "status=none")
    return time.monotonic() - begun


def native(base, scale, row):
    """Writes and warm reads against a directory of the same disk, best of three in turn. The writer is alone, so that
    sending does not compete with writing."""
    plain = os.path.join(base, "plain")
    os.mkdir(plain)
    with Group(base, 1) as (alder,):
        for block, size, goal in (("1M", GIB, "≥ 0.6 x"), ("128K", GIB, ""), ("4K", 256 * MIB, "≥ 500 MB/s")):
            size //= scale
            source = make(os.path.join(base, "source"), size)
            there, here = [], []
            for number in range(3):
                for times, target in ((there, os.path.join(plain, "f")), (here, alder.outbox(f"{block}-{number}"))):
                    os.sync()
                    times.append(dd(source, target, block))
                    os.unlink(target)
            row(f"write into the outbox by {block}iB, ratio to a plain directory",
                f"{min(there) / min(here):.2f} x, {size / 1e6 / min(here):,.0f} MB/s", goal)
            os.unlink(source)
    source = make(os.path.join(base, "source"), GIB // scale)
    with Group(base, 2) as (alder, birch):
        command("cp", source, alder.outbox("f"))
        visible([birch.inbox("f")])
        wait(alder.idle, "receipts")
        paths = (birch.inbox("f"), source)
        times = {path: [] for path in paths}
        for number in range(4):
            for path in paths:
                took = dd(path, "/dev/null", "1M")
                if number > 0:  # the first one warms
                    times[path].append(took)
        here, there = (min(times[path]) for path in paths)
        row("warm read from the inbox, ratio to a plain directory", f"{there / here:.2f} x", "≥ 0.9 x")
    shutil.rmtree(plain)
    os.unlink(source)


# At rest


def idle(base, scale, row):
    seconds = 20 if scale == 1 else 5
    with Group(base, 2) as nodes:
        alder, birch = nodes
        for number in range(100):
            with open(alder.outbox(f"f{number}"), "wb") as file:
                file.write(random.randbytes(KIB))
        visible([birch.inbox(f"f{number}") for number in range(100)])
        wait(alder.idle, "receipts")
        time.sleep(3)
        before = [node.cpu() for node in nodes]
        time.sleep(seconds)
        used = max(node.cpu() - cpu for node, cpu in zip(nodes, before))
        row(f"idle CPU over {seconds} s, the busier of two daemons", f"{used / seconds * 100:.2f} %", "< 0.2 %")


# Beside a large bundle


def crowded(base, scale, row, files):
    """What others feel while one bundle of many files is published beside them."""
    source = os.path.join(base, "crowd")
    for d in range(100):
        os.makedirs(os.path.join(source, f"d{d}"))
        for f in range(files // 100):
            with open(os.path.join(source, f"d{d}", f"f{f}"), "w") as file:
                file.write(f"{d} {f}\n")
    supply = make_tree(os.path.join(base, "supply"), 200 if scale == 1 else 50, 40, 100)
    for merged, where in ((False, "a free name"), (True, "a directory that is there")):
        took, idle_ops, ops = crowd(base, source, supply, merged)
        label = f"{files:,} files as one bundle into {where}"
        row(f"{label}, mv → visible", f"{took:.1f} s")
        for op in ("rm", "stat", "write", "ls"):
            row(f"… beside it `{op}`, p50 / p99 / p99 of the worst second / worst", worse(ops, op), "p99 ≤ 20 ms")
            row("… the same with nothing going on", worse(idle_ops, op))
    shutil.rmtree(source)
    shutil.rmtree(supply)


def worse(ops, op):
    """The tree of the two in which `op` takes longer."""
    tree, times = max(((tree, times[op]) for tree, times in ops.items() if times.get(op)), key=lambda of: of[1]["second"])
    return f"{tree}: " + " / ".join(f"{times[key] * 1000:.2f}" for key in ("p50", "p99", "second", "worst")) + f" ms of {times['count']:,}"


def crowd(base, source, supply, merged):
    with Group(base, 2) as (alder, birch):
        send_tree(alder, supply, "supply")
        for d in range(100 if merged else 0):
            os.makedirs(alder.outbox(".before", f"d{d}"))
            for f in range(10):
                with open(alder.outbox(".before", f"d{d}", f"old{f}"), "w") as file:
                    file.write(f"old {d} {f}\n")
        if merged:
            os.rename(alder.outbox(".before"), alder.outbox("crowd"))
            visible([birch.inbox("crowd")])
        wait(alder.idle, "receipts")
        wait(lambda: os.path.isdir(birch.inbox("supply")), "supply")
        if merged:
            shutil.rmtree(alder.outbox("crowd"))
        command("cp", "-r", source, alder.outbox(".crowd"))
        time.sleep(0.5)
        last = birch.inbox("crowd", "d99", "f0")
        published = birch.counts()["published"]
        quiet = Probe(base, birch)
        time.sleep(2)
        quiet = quiet.stop()
        probe = Probe(base, birch)
        begun = time.monotonic()
        os.rename(alder.outbox(".crowd"), alder.outbox("crowd"))
        wait(lambda: os.path.exists(last), "the bundle", 0.05)
        took = time.monotonic() - begun
        wait(alder.idle, "receipts", 0.1)
        ops = probe.stop()
        bundles = birch.counts()["published"] - published
        if bundles != 1:
            raise AssertionError(f"came as {bundles} bundles")
        check_merged(source, birch.inbox("crowd"), 1000 if merged else 0)
        return took, quiet, ops


def send_tree(node, source, name):
    """Sends a tree as one bundle."""
    command("cp", "-r", source, node.outbox("." + name))
    os.rename(node.outbox("." + name), node.outbox(name))


def check_merged(source, target, more):
    """All files of `source` are in `target`, and so many more."""
    for where, _, names in os.walk(source):
        for name in names:
            path = os.path.join(where, name)
            with open(path) as here, open(os.path.join(target, os.path.relpath(path, source))) as there:
                assert here.read() == there.read(), f"{name} differs"
    found = files_below(target)
    assert found == files_below(source) + more, f"{found} files"


class Probe:
    """A process that does small operations in both trees of a daemon, as fast as it can."""

    def __init__(self, base, node):
        self.child = Child(os.path.join(base, "probe.log"), os.path.join(HERE, "probe.py"), node.mount)
        self.child.line()

    def stop(self):
        self.child.tell("stop")
        ops = json.loads(self.child.line())
        self.child.stop(by_itself=True)
        return ops


# For a long time


def sizes(nodes, of):
    return " / ".join(f"{of(node) / MIB:.0f}" for node in nodes) + " MiB"


def journal(node):
    return os.path.getsize(os.path.join(node.state, "journal.redb"))


def soak(base, scale, row):
    """Rounds of small files that are sent, received, removed on both sides: what is left afterwards, and the memory."""
    total, each = 200_000 // scale, 5_000 // scale
    with Group(base, 2) as nodes:
        alder, birch = nodes
        begun = time.monotonic()
        for number in range(total // each):
            here = f"round{number}"
            top = make_tree(os.path.join(base, here), 50, each // 50, 100)
            command("cp", "-r", top, alder.outbox(here))
            visible([birch.inbox(here, f"d{d}", f"f{f}") for d in range(50) for f in range(each // 50)])
            wait(alder.idle, "receipts", 0.05)
            for there in (alder.outbox(here), birch.inbox(here)):
                run("rm", "-r", there, timeout=LIMIT)
            shutil.rmtree(top)
            done = (number + 1) * each
            if done in (each, total // 2 // each * each, total):
                row(f"after {done:,} bundles: RSS, sender / receiver", sizes(nodes, lambda node: node.rss()), "flat")
                row(f"after {done:,} bundles: journal, sender / receiver", sizes(nodes, journal), "flat")
        wait(lambda: sum(files_below(node.state, "content") for node in nodes) == 0, "content is freed", 0.1)
        partial = sum(files_below(node.state, "partial") for node in nodes)
        row("files left in content/ and partial/ of both", f"{partial}", "0")
        row(f"{total:,} bundles took", f"{time.monotonic() - begun:.0f} s")
        for node in nodes:
            node.restart()
        row("journal after a restart, sender / receiver", sizes(nodes, journal), "compacted")
        assert files_below(birch.mount, "inbox") == 0, "something was shown again"


# Part → what it does, and the seconds that it may take.
PARTS = {"steps": (steps, LIMIT), "native": (native, LIMIT), "idle": (idle, LIMIT), "crowded": (crowded, 1800), "soak": (soak, 7200)}
