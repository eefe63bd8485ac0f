//! Reading through a real mount: by the kernel itself where it can, never in two ways at once, and what is shared.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::fs::NodeId;

impl Mounted {
    fn inbox(&self) -> PathBuf {
        self.at.path().join("inbox")
    }

    /// Whether the kernel reads the file behind a descriptor by itself.
    fn by_kernel(&self, file: &fs::File) -> bool {
        let node = NodeId(file.metadata().unwrap().ino());
        self.t.fs.is_read_by_kernel(node)
    }

    /// Whether this kernel can do that at all; says so if not.
    fn kernel_reads(&self) -> bool {
        let offered = self.serving.as_ref().unwrap().backings.offered();
        if !offered {
            eprintln!("not checked: this kernel cannot read backing files by itself");
        }
        offered
    }

    fn withhold(&self, withheld: bool) {
        let backings = &self.serving.as_ref().unwrap().backings;
        backings.withheld.store(withheld, Ordering::SeqCst);
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|run| run.status.success());
    if !found {
        eprintln!("not checked: no {program}");
    }
    found
}

#[test]
fn the_kernel_reads_inbox_files_by_itself_and_outbox_files_never() {
    let Some(m) = Mounted::new() else { return };
    m.t.publish("f", b"from birch");
    m.sh("printf mine > f");
    let mut inbox = fs::File::open(m.inbox().join("f")).unwrap();
    let outbox = fs::File::open(m.outbox().join("f")).unwrap();
    assert!(!m.by_kernel(&outbox));
    if m.kernel_reads() {
        assert!(m.by_kernel(&inbox));
    }
    let mut text = String::new();
    inbox.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from birch");
    m.withhold(true);
    let again = fs::File::open(m.inbox().join("f")).unwrap();
    assert_eq!(m.by_kernel(&again), m.kernel_reads(), "as the first");
    drop((inbox, again));
    m.sh("test \"$(cat ../inbox/f)\" = 'from birch'");
}

#[test]
fn every_way_to_read_an_inbox_file_works_with_and_without_the_kernels_help() {
    let Some(m) = Mounted::new() else { return };
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    m.t.publish("data", &bytes);
    m.t.publish("program", b"#!/bin/sh\necho ran\n");
    m.t.publish("true", &fs::read("/bin/true").unwrap());
    for program in ["program", "true"] {
        let backing = m.t.inbox_file(program);
        fs::set_permissions(backing, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let plain = m.at.path().with_extension("plain");
    fs::write(&plain, &bytes).unwrap();
    let with = |script: &str| script.replace("PLAIN", plain.to_str().unwrap());
    for withheld in [false, true] {
        m.withhold(withheld);
        m.sh("test \"$(../inbox/program)\" = ran; ../inbox/true");
        m.sh(&with(
            "cat ../inbox/data | cmp - PLAIN; cmp ../inbox/data PLAIN",
        ));
        // dd asks for O_DIRECT; whether it gets that is up to the disk, as without us.
        m.sh(&with("if dd if=PLAIN of=/dev/null iflag=direct bs=64k 2>/dev/null; then dd if=../inbox/data iflag=direct bs=64k 2>/dev/null | cmp - PLAIN; fi"));
        m.sh(&with("cp ../inbox/data copy; cmp copy PLAIN; rm copy"));
        if has("python3") {
            m.sh(&with(
                "python3 -c \"
import mmap,os,socket,sys
want=open('PLAIN','rb').read()
f=open('../inbox/data','rb')
m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)
f.close()
assert m[:]==want
f=open('../inbox/data','rb')
a,b=socket.socketpair()
assert os.sendfile(a.fileno(),f.fileno(),100,1000)==1000
assert b.recv(1000)==want[100:1100]
r,w=os.pipe()
assert os.splice(f.fileno(),w,4096,offset_src=8192)==4096
assert os.read(r,4096)==want[8192:12288]
assert os.lseek(f.fileno(),0,os.SEEK_DATA)==0
assert os.preadv(f.fileno(),[bytearray(10)],len(want)-3)==3
assert os.pread(f.fileno(),10,len(want)+9)==b''
\"",
            ));
        }
    }
    fs::remove_file(plain).unwrap();
}

#[test]
fn who_has_a_version_open_keeps_it_and_the_next_open_sees_the_new_one() {
    let Some(m) = Mounted::new() else { return };
    for withheld in [false, true] {
        m.withhold(withheld);
        m.t.publish("f", b"version 1");
        let mut old = fs::File::open(m.inbox().join("f")).unwrap();
        let mut half = [0; 4];
        old.read_exact(&mut half).unwrap();
        m.t.publish("f", b"the second version");
        assert_eq!(
            fs::read(m.inbox().join("f")).unwrap(),
            b"the second version"
        );
        let mut rest = String::new();
        old.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ion 1");
        m.sh("rm ../inbox/f");
        assert!(fs::File::open(m.inbox().join("f")).is_err());
        old.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(io::read_to_string(&old).unwrap(), "version 1");
        let by_descriptor = format!("/proc/self/fd/{}", old.as_raw_fd());
        assert_eq!(fs::read(by_descriptor).unwrap(), b"version 1");
    }
}

/// The kernel keeps its inode over the rename, and with it the way it reads.
#[test]
fn a_file_moved_out_while_it_is_read_can_be_written_at_once() {
    let Some(m) = Mounted::new() else { return };
    for withheld in [false, true] {
        m.withhold(withheld);
        m.t.publish("f", b"from birch\n");
        let reader = fs::File::open(m.inbox().join("f")).unwrap();
        assert_eq!(io::read_to_string(&reader).unwrap(), "from birch\n");
        m.sh("mv ../inbox/f g; echo more >> g; test \"$(cat g)\" = \"$(printf 'from birch\\nmore')\"");
        m.sh(
            "chmod 600 g; test \"$(stat -c %a g)\" = 600; touch g; ln g h; mv h i; truncate -s 4 i",
        );
        assert_eq!(fs::read(m.outbox().join("g")).unwrap(), b"from");
        let mut seen = [0; 32];
        let n = reader.read_at(&mut seen, 0).unwrap();
        assert_eq!(&seen[..n], b"from", "it is the same file");
        drop(reader);
        m.sh("echo > g; rm g i");
    }
}

#[test]
fn hard_linked_names_share_every_change_at_once() {
    let Some(m) = Mounted::new() else { return };
    let (a, b) = (m.outbox().join("a"), m.outbox().join("b"));
    fs::write(&a, b"one two three").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let held = fs::File::open(&b).unwrap();
    let look = |path: &Path| (fs::read(path).unwrap(), fs::metadata(path).unwrap().len());
    assert_eq!(look(&b).0, b"one two three", "and now it is cached");

    let writer = fs::OpenOptions::new().write(true).open(&a).unwrap();
    writer.write_all_at(b"ONE", 0).unwrap();
    assert_eq!(look(&b), (b"ONE two three".to_vec(), 13));
    writer.write_all_at(b" four", 13).unwrap();
    assert_eq!(look(&b), (b"ONE two three four".to_vec(), 18));
    let mut seen = [0; 64];
    assert_eq!(held.read_at(&mut seen, 0).unwrap(), 18);
    assert_eq!(held.metadata().unwrap().len(), 18);
    writer.set_len(3).unwrap();
    assert_eq!(look(&b), (b"ONE".to_vec(), 3));
    assert_eq!(held.read_at(&mut seen, 0).unwrap(), 3);
    drop(writer);
    fs::write(&b, b"through the other").unwrap();
    assert_eq!(look(&a).0, b"through the other");
    fs::remove_file(&a).unwrap();
    assert_eq!(look(&b).0, b"through the other");
    assert_eq!(fs::metadata(&b).unwrap().nlink(), 1);
}

#[test]
fn readers_of_the_outbox_see_what_a_writer_wrote() {
    let Some(m) = Mounted::new() else { return };
    let path = m.outbox().join("log");
    let mut writer = fs::File::create(&path).unwrap();
    let follower = fs::File::open(&path).unwrap();
    let mut expected = Vec::new();
    for line in 0..2000 {
        let line = format!("line {line}\n");
        writer.write_all(line.as_bytes()).unwrap();
        expected.extend_from_slice(line.as_bytes());
        let mut last = vec![0; line.len()];
        let at = (expected.len() - line.len()) as u64;
        follower.read_exact_at(&mut last, at).unwrap();
        assert_eq!(last, line.as_bytes());
    }
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(io::read_to_string(&follower).unwrap().as_bytes(), expected);
}

/// A handle that only writes goes past the cache: what is mapped, dirty or not, must neither be lost nor stale.
#[test]
fn a_mapping_and_a_handle_that_only_writes_see_each_other() {
    let Some(m) = Mounted::new() else { return };
    if !has("python3") {
        return;
    }
    m.sh("python3 -c \"
import mmap,os
fd=os.open('m',os.O_RDWR|os.O_CREAT,0o644); os.write(fd,b'.'*8192)
p=mmap.mmap(fd,8192)
w=os.open('m',os.O_WRONLY)
for n in range(200):
    text=b'%05d'%n
    p[0:5]=text; p[5000:5005]=text
    os.pwrite(w,text,100+n); os.pwrite(w,text,4094)
    assert p[0:5]==text and p[5000:5005]==text, n
    assert p[100+n:105+n]==text and p[4094:4099]==text, n
    assert os.pread(fd,5,4094)==text
p.flush()
assert open('m','rb').read()==p[:]
os.truncate('m',4096); os.pwrite(w,b'end',8189)
assert p[4096:8189]==bytes(4093) and p[8189:]==b'end'
\"");
    assert_eq!(
        fs::read(m.t.outbox("m")).unwrap(),
        fs::read(m.outbox().join("m")).unwrap()
    );
}

/// Threads that open and read while the test changes what they open.
const READERS: usize = 6;

/// How many changes the stress makes: enough for each mix of modes to come about hundreds of times.
const CHANGES: u32 = 1500;

/// Fresh content for change `n`: its length and every byte tell whether what is read is one version.
fn version(n: u32) -> Vec<u8> {
    vec![n as u8; 1 + (n as usize * 997) % 20_000]
}

/// What may be seen by who opens a name that is being removed and made again; anything else is a fault. The kernel looks
/// a name up again once when its file was replaced during the open; here that may happen twice.
fn open_or_gone(path: &Path, flags: i32) -> Option<fs::File> {
    let mut options = fs::OpenOptions::new();
    match options.read(true).custom_flags(flags).open(path) {
        Ok(file) => Some(file),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => None,
        Err(error) => panic!("open {}: {error}", path.display()),
    }
}

/// Whether it is the byte that is appended after a move. The kernel fills the end of the last page that it reads with
/// zeros; a program that appends at that moment makes the file longer before the page is read again.
fn is_being_appended(bytes: &[u8], at: usize) -> bool {
    at + 1 == bytes.len() && bytes[at] == 0
}

/// Opens, now and then keeping what is open, and reads it all; the bytes must be of one version.
fn read_over_and_over(dir: &Path, seed: u32, stop: &AtomicBool) -> u32 {
    let mut random = seed;
    let mut kept = Vec::new();
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let name = format!("f{}", random >> 16 & 3);
        let Some(file) = open_or_gone(&dir.join(name), 0) else {
            continue;
        };
        let mut bytes = Vec::new();
        (&file)
            .read_to_end(&mut bytes)
            .unwrap_or_else(|error| panic!("read: {error}"));
        let first = bytes.first().copied();
        let differs = bytes.iter().position(|byte| Some(*byte) != first);
        if let Some(at) = differs.filter(|at| !is_being_appended(&bytes, *at)) {
            let (first, other, len) = (bytes[0], bytes[at], bytes.len());
            panic!("two versions at once: {first} up to {at} of {len}, then {other}");
        }
        read += 1;
        match random >> 20 & 3 {
            0 => kept.push(file),
            1 => kept.clear(),
            _other => drop(file),
        }
        if kept.len() > 8 {
            kept.remove(0);
        }
    }
    read
}

/// An open in one mode while a handle of the other is open fails with EIO: none may, whoever opens, however the kernel's
/// answers change, while versions are replaced, consumed and moved out.
#[test]
fn no_mix_of_opens_replacements_and_moves_ever_fails() {
    let Some(m) = Mounted::new() else { return };
    let (inbox, outbox) = (m.inbox(), m.outbox());
    for n in 0..4 {
        m.t.publish(&format!("f{n}"), &version(n));
    }
    let stop = AtomicBool::new(false);
    let stopper = Stopper(&stop);
    std::thread::scope(|scope| {
        let stopper = stopper;
        let readers: Vec<_> = (0..READERS)
            .map(|n| {
                let (inbox, stop) = (inbox.clone(), &stop);
                scope.spawn(move || read_over_and_over(&inbox, n as u32, stop))
            })
            .collect();
        for change in 0..CHANGES {
            m.withhold(change % 7 < 2);
            let name = format!("f{}", change % 4);
            let (from, to) = (inbox.join(&name), outbox.join(format!("m{change}")));
            match change % 3 {
                0 => {}
                1 => fs::remove_file(&from).unwrap(),
                _moved => {
                    fs::rename(&from, &to).unwrap();
                    // In one step after the rename, while the kernel still believes the entry.
                    let file = fs::OpenOptions::new()
                        .read(true)
                        .write(true)
                        .open(&to)
                        .unwrap_or_else(|error| panic!("open {}: {error}", to.display()));
                    let mut bytes = Vec::new();
                    (&file).read_to_end(&mut bytes).unwrap();
                    // The same byte, for those who still read it.
                    let more = [bytes.first().copied().unwrap_or(0)];
                    file.write_all_at(&more, bytes.len() as u64).unwrap();
                    bytes.extend(more);
                    assert_eq!(fs::read(&to).unwrap(), bytes);
                    drop(file);
                    fs::remove_file(&to).unwrap();
                }
            }
            m.t.publish(&name, &version(change));
            let content = fs::read(&from).unwrap_or_else(|error| panic!("read: {error}"));
            assert!(content == version(change), "not the version just published");
        }
        drop(stopper);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

/// Ends the readers however the test ends.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
