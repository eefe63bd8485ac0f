//! One real mount: what ordinary programs do, and what the spool then sees.

#[cfg(test)]
mod listing;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod times;

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::convert::rdev;
use super::*;
use crate::fs::tests::{Sealed, TestFs, test_fs};
use crate::fs::{Device, NodeId};

/// A mount that goes away with the test, however that ends.
struct Mounted {
    at: TempDir,
    serving: Option<Serving>,
    // Dropped last: it ends the threads of the file system.
    t: TestFs,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Of a failed test a loop may be stuck: FORCE answers everything that waits, so that the loops end.
        let flags = if std::thread::panicking() {
            UnmountFlags::DETACH | UnmountFlags::FORCE
        } else {
            UnmountFlags::DETACH
        };
        let _ = unmount(self.at.path(), flags);
        if let Some(serving) = self.serving.take() {
            serving.join().ok();
        }
    }
}

impl Mounted {
    /// A mount, or `None` with the reason printed.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let fd: OwnedFd =
            match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => fd,
                Err(error) => {
                    eprintln!("skipped: /dev/fuse: {error}");
                    return None;
                }
            };
        let at = tempfile::tempdir().unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            fd.as_raw_fd()
        );
        let options = CString::new(options).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount(
            "meshbox-test",
            at.path(),
            "fuse.meshbox",
            flags,
            options.as_c_str(),
        ) {
            eprintln!("skipped: mount: {error}");
            return None;
        }
        let t = test_fs();
        let mut mounted = Self {
            at,
            serving: None,
            t,
        };
        mounted.serving = Some(serve(mounted.t.fs.clone(), fd, 2, true).unwrap());
        Some(mounted)
    }

    fn outbox(&self) -> PathBuf {
        self.at.path().join("outbox")
    }

    /// Runs a shell script in the outbox; fails with what it printed.
    fn sh(&self, script: &str) {
        let output = Command::new("timeout")
            .args(["-k", "1", "60", "sh", "-euc", script])
            .current_dir(self.outbox())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}\n{:?}: {printed}",
            output.status
        );
    }
}

#[test]
fn ordinary_programs_find_an_ordinary_file_system() {
    let Some(m) = Mounted::new() else { return };
    m.sh("test \"$(ls -A ..)\" = \"$(printf '.meshbox\\ninbox\\noutbox')\"; cat ../.meshbox/status.json; cat ../.meshbox/metrics");
    m.sh("head -c 3000000 /dev/urandom > /tmp/meshbox-test-$$; cp /tmp/meshbox-test-$$ big; cmp /tmp/meshbox-test-$$ big; rm /tmp/meshbox-test-$$");
    assert_eq!(m.t.wait_seal(), Sealed::One("big".into(), None));
    m.sh("mkdir -p d/e; mv big d/e/big; test ! -e big; cp -a d copy; cmp d/e/big copy/e/big; rm -r copy");
    m.sh("printf a > a; printf bb > b; mv -n a b; test -e a; ln a c; test \"$(stat -c %i a)\" = \"$(stat -c %i c)\"; test \"$(stat -c %h a)\" = 2");
    m.sh("exec 3<>u; rm u; echo gone >&3; test \"$(stat -L -c %h /proc/self/fd/3)\" = 0; cat /proc/self/fd/3 | grep -q gone");
    m.sh("dd if=/dev/zero of=z bs=4k count=10 2>/dev/null; truncate -s 5 z; test \"$(stat -c %s z)\" = 5; printf x | dd of=z bs=1 seek=4 conv=notrunc 2>/dev/null; test \"$(stat -c %s z)\" = 5");
    m.sh("echo 1 > log; echo 2 >> log; test \"$(cat log)\" = \"$(printf '1\\n2')\"; fallocate -l 8192 log || true");
    m.sh("! ln -s a link 2>/dev/null; ! mkfifo pipe 2>/dev/null; ! touch ../x 2>/dev/null; ! touch ../inbox/x 2>/dev/null");
    m.sh("for i in $(seq 300); do echo $i > many$i; done; test \"$(ls | grep -c many)\" = 300; rm many*; test \"$(ls | grep -c many || true)\" = 0");
    m.sh("df . > /dev/null; sync -d a; sync d; touch -d 2001-01-01 a; test \"$(stat -c %Y a)\" = \"$(date -d 2001-01-01 +%s)\"; chmod 640 a; test \"$(stat -c %a a)\" = 640");
    let exchanged = rustix::fs::renameat_with(
        rustix::fs::CWD,
        m.outbox().join("a"),
        rustix::fs::CWD,
        m.outbox().join("b"),
        rustix::fs::RenameFlags::EXCHANGE,
    );
    exchanged.unwrap();
    assert_eq!(fs::read(m.t.outbox("a")).unwrap(), b"bb");
    assert_eq!(fs::read(m.outbox().join("a")).unwrap(), b"bb");
}

#[test]
fn what_cannot_travel_works_below_an_ignored_name_and_stays_there() {
    let Some(m) = Mounted::new() else { return };
    m.sh("mkdir .d; echo text > .d/f; ln -s f .d/l; test \"$(readlink .d/l)\" = f; test \"$(cat .d/l)\" = text; ln .d/l .d/l2; mv .d/l2 .d/l3; test -L .d/l3; rm .d/l3");
    m.sh("mkfifo -m 640 .d/p; test \"$(stat -c %F:%a .d/p)\" = fifo:640; (echo through > .d/p) & test \"$(cat .d/p)\" = through; wait");
    m.sh("exec 3<>.d/p; rm .d/p; echo still >&3; read -r line <&3; test \"$line\" = still; test \"$(stat -L -c %F:%h /proc/self/fd/3)\" = fifo:0");
    m.sh("mknod .d/null c 1 3; mknod .d/far b 259 70000; test \"$(stat -c %F:%t:%T .d/null .d/far)\" = \"$(printf 'character special file:1:3\\nblock special file:103:11170')\"");
    m.sh("chown -h 1:2 .d/l; touch -h -d 2001-01-01 .d/l; test \"$(stat -c %u:%g .d/l .d/f)\" = \"$(printf '1:2\\n0:0')\"; chmod 600 .d/null; test \"$(stat -c %a .d/null)\" = 600");
    let socket = std::os::unix::net::UnixListener::bind(m.outbox().join(".d/s")).unwrap();
    std::os::unix::net::UnixStream::connect(m.outbox().join(".d/s")).unwrap();
    drop(socket);
    m.sh("test \"$(cd .d; find . -type s; find . -type l; find . -type c)\" = \"$(printf './s\\n./l\\n./null')\"");
    m.sh("! mv .d d 2>/dev/null; ! mv .d/l l 2>/dev/null; ! ln -P .d/l l 2>/dev/null; test -L .d/l; test \"$(ls)\" = ''; mv .d .e; cp -a .e .copy; test -L .copy/l; rm -r .copy");
    m.sh("cd .e; rm l s null far; cd ..; mv .e e");
    m.t.wait_sealed(|sealed| matches!(sealed, Sealed::Tree(files, _) if *files == ["e/f"]));
}

#[test]
fn device_numbers_survive_the_protocol() {
    for (major, minor) in [
        (0, 0),
        (1, 3),
        (8, 255),
        (8, 256),
        (259, 70_000),
        (4095, 0xf_ffff),
    ] {
        let one = Device { major, minor };
        assert_eq!(device(rdev(one)), one);
    }
    assert_eq!(rdev(Device { major: 8, minor: 1 }), 0x801);
}

#[test]
fn a_file_is_sealed_when_the_last_copy_of_its_descriptor_is_closed() {
    let Some(m) = Mounted::new() else { return };
    m.sh("exec 3>f; echo parent >&3; (sleep 0.3; echo child >&3) & exec 3>&-; test -s f; wait");
    assert_eq!(m.t.wait_seal(), Sealed::One("f".into(), None));
    assert_eq!(fs::read(m.t.outbox("f")).unwrap(), b"parent\nchild\n");
}

#[test]
fn a_mapping_that_outlives_its_descriptor_is_still_a_writer() {
    let Some(m) = Mounted::new() else { return };
    if !Command::new("python3")
        .arg("-V")
        .output()
        .is_ok_and(|python| python.status.success())
    {
        eprintln!("skipped: no python3 to make a mapping with");
        return;
    }
    m.sh("python3 -c \"
import mmap,os
fd=os.open('m',os.O_RDWR|os.O_CREAT,0o644); os.ftruncate(fd,4096)
p=mmap.mmap(fd,4096); os.close(fd); p[0:5]=b'later'; p.close()\"");
    assert_eq!(m.t.wait_seal(), Sealed::One("m".into(), None));
    assert_eq!(&fs::read(m.t.outbox("m")).unwrap()[..5], b"later");
}

/// How long a program may take that takes milliseconds where nothing hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// execve(2) closes the file while it holds the lock that `/proc/<pid>/stat` waits for. A FLUSH that read it had the
/// loop, the program and every `ps` wait for ever.
#[test]
fn a_written_file_may_be_closed_by_execve() {
    let Some(m) = Mounted::new() else { return };
    let path = m.outbox().join("f");
    let (sender, done) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        // Rust opens with O_CLOEXEC: each program started here closes the file in its execve.
        let mut file = fs::File::create(path).unwrap();
        for _ in 0..5 {
            file.write_all(b"more\n").unwrap();
            assert!(Command::new("true").status().unwrap().success());
        }
        drop(file);
        let _ = sender.send(());
    });
    done.recv_timeout(PATIENCE)
        .expect("a close by execve hangs");
    writer.join().unwrap();
    assert_eq!(m.t.wait_seal(), Sealed::One("f".into(), None));
}

/// However a writer is killed, its FLUSH shows it. (SIGINT is left out for dd, which closes its file before it lets
/// itself be killed. What the shell starts in the background would ignore it, but for `env`.)
#[test]
fn every_killed_writer_is_seen() {
    let Some(m) = Mounted::new() else { return };
    let writers = [
        ("yes > $f", &["KILL", "TERM", "INT"][..]),
        ("cp /dev/zero $f", &["KILL", "TERM", "INT"][..]),
        ("dd if=/dev/zero of=$f bs=64k", &["KILL", "TERM"][..]),
    ];
    for (n, (program, signals)) in writers.iter().enumerate() {
        for signal in *signals {
            let f = format!("{signal}{n}");
            m.sh(&format!(
                "env --default-signal sh -c 'f={f}; exec {program}' 2>/dev/null & p=$!; until [ -s {f} ]; do sleep 0.01; done; kill -s {signal} $p; wait $p || true"
            ));
            m.t.wait_torn(&f);
        }
    }
}

#[test]
fn a_file_whose_writer_was_killed_is_held_back() {
    let Some(m) = Mounted::new() else { return };
    m.sh("yes > torn & p=$!; while [ ! -s torn ]; do sleep 0.02; done; sleep 0.05; kill -9 $p; wait $p || true");
    m.t.wait_torn("torn");
    let state = m.t.fs.lookup(NodeId::OUTBOX, b"torn").unwrap();
    assert_eq!(
        m.t.fs
            .getxattr(state.attr.node, b"user.meshbox.state")
            .unwrap(),
        b"incomplete"
    );
}

/// In a loop and in the pool, more often than there are threads of either.
#[test]
fn a_panic_ends_one_operation_with_an_error_and_not_the_mount() {
    let Some(m) = Mounted::new() else { return };
    let panicked = Arc::new(std::sync::Mutex::new(Vec::new()));
    for n in 0..8 {
        let file = m.outbox().join(format!("f{n}"));
        fs::write(&file, format!("sealed {n}")).unwrap();
        m.t.wait_sealed(|sealed| *sealed == Sealed::One(format!("f{n}"), None));
        let opened = fs::File::options().write(true).open(&file).unwrap();
        let on = panicked.clone();
        m.t.spool.content.pretend_free(move || {
            let thread = std::thread::current();
            on.lock().unwrap().push(thread.name().unwrap().to_owned());
            panic!("injected")
        });
        let made = fs::create_dir(m.outbox().join("d")).unwrap_err();
        assert_eq!(made.raw_os_error(), Some(libc::EIO), "in a loop");
        // Room for a copy of the sealed bytes is asked for in the pool.
        let cut = opened.set_len(1).unwrap_err();
        assert_eq!(cut.raw_os_error(), Some(libc::EIO), "in the pool");
        m.t.spool.content.pretend_no_more();
        m.sh(&format!("echo {n} > after; test \"$(cat after)\" = {n}"));
        opened.set_len(1).unwrap();
    }
    let panicked = panicked.lock().unwrap();
    let in_pool = |name: &&String| name.starts_with("fs-blocking");
    let pool = panicked.iter().filter(in_pool).count();
    assert_eq!((pool, panicked.len()), (8, 16), "{panicked:?}");
}

/// What the log says of it.
#[test]
fn a_panic_is_logged_with_the_operation() {
    #[derive(Clone, Default)]
    struct Log(Arc<std::sync::Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        guarded("getxattr", INodeNo(7), || panic!("injected"));
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for word in ["ERROR", "getxattr", "node=7", "its caller got EIO"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_read_that_was_aborted_by_the_end_of_the_mount_is_no_fault() {
    let of = |errno: i32| ended(Err(io::Error::from_raw_os_error(errno)));
    of(libc::ECONNABORTED).unwrap();
    ended(Ok(())).unwrap();
    assert_eq!(of(libc::EIO).unwrap_err().raw_os_error(), Some(libc::EIO));
}
