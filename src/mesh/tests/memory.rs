//! What one member can make a node hold in memory, measured in a process of its own: the bound is part of the promise.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicUsize;

use iroh::endpoint::{RecvStream, SendStream};
use tempfile::TempDir;

use super::super::budget;
use super::super::wire::{MemberFrame, RangeRequest, RangeStatus, longest};
use super::faults::Real;
use super::sources::Reply;
use super::*;
use crate::bundle::{
    ENTRIES_BYTES_MAX, Entry, EntryKind, MAX_ENTRIES, Manifest, RelPath, VerifiedManifest,
};
use crate::digest::{ChunkList, Digest, LEAF, MAX_CHUNKS};
use crate::encoding;
use crate::peer::roll::SignedStatement;

const MIB: usize = 1 << 20;

/// What a single member can make a node hold beyond what it holds when nothing happens.
const MOST: usize = 64 * MIB;

/// Where the node in a process of its own finds the group's key, and says where it is.
const DIR: &str = "MESHBOX_TEST_NODE";

/// A node in another process.
struct Node {
    process: Child,
    group: GroupKey,
    id: PeerId,
    addrs: Vec<std::net::SocketAddr>,
    /// What it holds for everybody.
    bundle: BundleId,
    idle: usize,
    _dir: TempDir,
}

impl Node {
    fn start() -> Self {
        let (dir, group) = (tempfile::tempdir().unwrap(), GroupKey::generate());
        std::fs::write(dir.path().join("key"), group.as_bytes()).unwrap();
        let name = "mesh::tests::memory::a_node_in_a_process_of_its_own";
        let process = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ready = dir.path().join("ready");
        eventually("the node", || ready.exists());
        let said = std::fs::read_to_string(ready).unwrap();
        let said: Vec<&str> = said.split_whitespace().collect();
        let mut node = Self {
            process,
            group,
            id: PeerId::from_hex(said[0]).unwrap(),
            bundle: BundleId::from_hex(said[1]).unwrap(),
            addrs: vec![said[2].parse().unwrap()],
            idle: 0,
            _dir: dir,
        };
        // Once through all that a session uses.
        let honest = Scripted::new();
        let (_conn, mut channel) = honest.join(&node, &node.group);
        let offer = Offer {
            age: 0,
            signed: honest.sign("f", b"x").signed().clone(),
            inline: vec![Some(Bytes::from_static(b"x"))],
        };
        assert_eq!(honest.offer_inline(&mut channel, offer), Verdict::Taken);
        drop(honest);
        node.idle = node.memory("VmRSS");
        std::fs::write(format!("/proc/{}/clear_refs", node.process.id()), "5").unwrap();
        node
    }

    fn memory(&self, of: &str) -> usize {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(of))
            .unwrap();
        let kib = line.trim_matches(|c: char| !c.is_ascii_digit());
        kib.parse::<usize>().unwrap() * 1024
    }

    /// Asserts what it held at most since the start, beyond being idle; and that it is alive.
    fn held_at_most(&self, most: usize, what: &str) {
        let held = self.memory("VmHWM").saturating_sub(self.idle);
        println!("{what}: {} MiB over {} MiB", held / MIB, self.idle / MIB);
        assert!(held < most, "{what}: {} MiB", held / MIB);
        let honest = Scripted::new();
        let (_conn, mut channel) = honest.join(self, &self.group);
        honest.settle(&mut channel);
    }
}

impl Reached for Node {
    fn at(&self) -> (PeerId, Vec<std::net::SocketAddr>) {
        (self.id, self.addrs.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

#[test]
#[ignore = "started by the other tests here, in a process of its own"]
fn a_node_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    crate::mount::allocator::use_one_arena();
    let dir = Path::new(&dir);
    let key: [u8; 32] = std::fs::read(dir.join("key")).unwrap().try_into().unwrap();
    let (group, alder) = (GroupKey::from_bytes(key).unwrap(), Real::new());
    let a = alder.start(config("alder", &group));
    let bundle = alder.put("large", &pattern(64 * MIB));
    let said = format!("{} {bundle} {}", alder.id(), a.listen_addrs()[0]);
    std::fs::write(dir.join("new"), said).unwrap();
    std::fs::rename(dir.join("new"), dir.join("ready")).unwrap();
    let _ = std::io::stdin().read(&mut [0]).unwrap();
}

/// Sends as much of `bytes` as is taken before the connection ends or stops taking any.
fn push(mallory: &Scripted, send: &mut SendStream, bytes: &[u8]) {
    let writing = send.write_all(bytes);
    let patience = Duration::from_secs(5);
    drop(
        mallory
            .runtime
            .block_on(async { tokio::time::timeout(patience, writing).await }),
    );
}

#[test]
fn statements_of_any_length_take_no_memory() {
    let node = Node::start();
    let mallory = Scripted::new();
    for len in [20 * MIB, 450_000] {
        for _ in 0..8 {
            let (_conn, mut channel) = mallory.join(&node, &node.group);
            let signature = mallory.identity.sign(b"meshbox membership 1\0", b"x");
            let bytes = vec![7; len];
            let said = vec![SignedStatement { bytes, signature }; 1 + MIB / len];
            let frame = Frame::Member(MemberFrame::Statements(said));
            push(&mallory, &mut channel.send, &frame.to_bytes());
        }
    }
    node.held_at_most(MOST, "statements");
}

#[test]
fn an_offer_of_absent_lengths_takes_no_memory() {
    let node = Node::start();
    let mallory = Scripted::new();
    for len in [longest(5), 24 * MIB] {
        let (_conn, mut channel) = mallory.join(&node, &node.group);
        let mut frame = (len as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&[5, 1, 0]);
        frame.extend_from_slice(&[7; 64]);
        // Nine or more million of them.
        frame.extend_from_slice(&[0xff, 0xff, 0xff, 0x04]);
        frame.resize(4 + len, 0);
        push(&mallory, &mut channel.send, &frame);
    }
    node.held_at_most(MOST, "lengths");
}

/// Asks for a lot on every connection, and reads nothing; fills all streams with what nobody asked for.
fn ask_and_never_read(
    mallory: &Scripted,
    node: &Node,
    conn: &Connection,
) -> Vec<(SendStream, RecvStream)> {
    mallory.runtime.block_on(async {
        let mut open = Vec::new();
        for n in 0..20 {
            let opening = tokio::time::timeout(Duration::from_secs(1), conn.open_bi());
            let Ok(Ok((mut send, recv))) = opening.await else {
                break;
            };
            let request = RangeRequest {
                bundle: node.bundle,
                entry: 0,
                offset: n * MIB as u64,
                len: MIB as u64,
            };
            drop(send.write_all(&Frame::Range(request).to_bytes()).await);
            let junk = vec![0; 2 * MIB];
            let writing = send.write_all(&junk);
            drop(tokio::time::timeout(Duration::from_millis(20), writing).await);
            open.push((send, recv));
        }
        open
    })
}

#[test]
fn bulk_connections_without_end_take_no_more_than_one() {
    let node = Node::start();
    let mallory = Scripted::new();
    let (_conn, _channel) = mallory.join(&node, &node.group);
    let mut held = Vec::new();
    for _ in 0..60 {
        let conn = mallory.bulk(&node, &node.group);
        held.push((ask_and_never_read(&mallory, &node, &conn), conn));
    }
    node.held_at_most(MOST, "60 bulk connections of one member");
}

#[test]
fn ids_that_one_member_makes_up_share_one_budget() {
    let node = Node::start();
    let mut held = Vec::new();
    for _ in 0..20 {
        let mallory = Scripted::new();
        let joined = mallory.join(&node, &node.group);
        let conn = mallory.bulk(&node, &node.group);
        let open = ask_and_never_read(&mallory, &node, &conn);
        held.push((open, conn, joined, mallory));
    }
    node.held_at_most(MOST + budget::TOTAL, "20 ids");
}

/// Offers manifests, one after the other: while one is fetched and gets nothing, the next one is there already.
fn offer_several(what: &str, says: impl Fn(&Scripted, u64) -> Manifest) {
    let node = Node::start();
    let mallory = Scripted::new();
    let (_conn, mut channel) = mallory.join(&node, &node.group);
    let manifests: Vec<VerifiedManifest> = (0..4)
        .map(|n| says(&mallory, n).sign(&mallory.identity))
        .collect();
    let ids: Vec<BundleId> = manifests.iter().map(VerifiedManifest::id).collect();
    let answered = Arc::new(AtomicUsize::new(0));
    let (may, of) = (answered.clone(), ids.clone());
    let _bulk = mallory.hold(&node, &node.group, move |request| {
        let which = of.iter().position(|id| *id == request.bundle);
        while which.is_some_and(|which| which >= may.load(Ordering::Relaxed)) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Reply::Bytes(vec![RangeStatus::NotHeld as u8])
    });
    for (n, manifest) in manifests.iter().enumerate() {
        mallory.offers(&mut channel, manifest);
        if n > 0 {
            answered.store(n, Ordering::Relaxed);
            let verdict = mallory.verdict(&mut channel, ids[n - 1]);
            assert!(
                matches!(verdict, Verdict::Deferred(_)),
                "{what}: {verdict:?}"
            );
        }
        // It is fetched now.
        let working = |list: &[(BundleId, Verdict)]| list.contains(&(ids[n], Verdict::Working));
        while !matches!(mallory.hear(&mut channel), Frame::Verdicts(list) if working(&list)) {}
    }
    node.held_at_most(MOST, what);
    answered.store(ids.len(), Ordering::Relaxed);
}

/// With a first file that has to be fetched, and as many of `entries` as fit.
fn longest_of(mallory: &Scripted, seq: u64, entries: impl Iterator<Item = Entry>) -> Manifest {
    let mut says = manifest_of(mallory.id(), "f", &pattern(100_000));
    says.seq = seq;
    let mut listed = encoding::len_of(&says.entries[0]);
    for entry in entries.take(MAX_ENTRIES - 1) {
        listed += encoding::len_of(&entry);
        if listed > ENTRIES_BYTES_MAX {
            break;
        }
        says.entries.push(entry);
    }
    says
}

fn entry(path: String, kind: EntryKind) -> Entry {
    Entry {
        path: RelPath::parse(path).unwrap(),
        mtime: (0, 0),
        kind,
    }
}

fn file(path: String, size: u64, chunks: ChunkList) -> Entry {
    let kind = EntryKind::File {
        size,
        executable: false,
        digest: Digest([9; 32]),
        chunks,
    };
    entry(path, kind)
}

#[test]
fn several_of_the_longest_manifests_of_directories_stay_within_the_bound() {
    offer_several("directories", |mallory, seq| {
        let name = |n| format!("{seq}/{n}-{}", "n".repeat(70));
        let all = (0..).map(|n: u64| entry(name(n), EntryKind::Directory));
        longest_of(mallory, seq, all)
    });
}

#[test]
fn several_of_the_longest_manifests_of_files_stay_within_the_bound() {
    offer_several("files", |mallory, seq| {
        let all = (0..).map(|n: u64| file(format!("{n}"), 1000, ChunkList::default()));
        longest_of(mallory, seq, all)
    });
}

#[test]
fn several_of_the_longest_manifests_of_chunks_stay_within_the_bound() {
    offer_several("chunks", |mallory, seq| {
        let chunks = || ChunkList::of_hashes(MAX_CHUNKS);
        let size = MAX_CHUNKS as u64 * LEAF;
        let all = (0..).map(|n: u64| file(format!("{n}"), size, chunks()));
        longest_of(mallory, seq, all)
    });
}

/// Chunks get longer with the file: those of 32 GiB may have 32 MiB.
#[test]
fn a_chunk_takes_no_more_memory_for_being_long() {
    let node = Node::start();
    let mallory = Scripted::new();
    let (_conn, mut channel) = mallory.join(&node, &node.group);
    let sent = Arc::new(AtomicUsize::new(0));
    let _bulk = mallory.hold(&node, &node.group, {
        let sent = sent.clone();
        move |request| {
            assert_eq!(request.len, 32 * LEAF);
            sent.fetch_add(1, Ordering::Relaxed);
            let mut bytes = vec![1; 31 * MIB];
            bytes[0] = RangeStatus::Ok as u8;
            Reply::Bytes(bytes)
        }
    });
    let mut says = longest_of(&mallory, 1, std::iter::empty());
    let chunks = ChunkList::of_long(5, MAX_CHUNKS / 4);
    says.entries = vec![file("f".into(), 32 << 30, chunks)];
    let manifest = says.sign(&mallory.identity);
    mallory.offers(&mut channel, &manifest);
    let verdict = mallory.verdict(&mut channel, manifest.id());
    assert!(
        matches!(&verdict, Verdict::Deferred(why) if why.contains("too short")),
        "{verdict:?}"
    );
    assert!(sent.load(Ordering::Relaxed) > 0);
    node.held_at_most(24 * MIB, "a long chunk");
}

#[test]
fn who_asks_and_never_reads_the_answers_takes_no_memory() {
    let node = Node::start();
    let mallory = Scripted::new();
    let (_conn, mut channel) = mallory.join(&node, &node.group);
    let ids: Vec<BundleId> = (0..=255).map(|n| BundleId([n; 32])).collect();
    let page = Frame::Pending(ids).to_bytes();
    let many: Vec<u8> = page
        .iter()
        .copied()
        .cycle()
        .take(page.len() * 4000)
        .collect();
    push(&mallory, &mut channel.send, &many);
    node.held_at_most(MOST, "questions");
}
