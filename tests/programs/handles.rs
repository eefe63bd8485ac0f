//! Unusual ways of writing: by size alone, by memory map, through descriptors that outlive their program.

use crate::matrix::{Program, run_matrix};
use crate::needs_mounts;

const WAYS: &[Program] = &[
    Program {
        name: "touch",
        needs: &["touch"],
        steps: &[
            ("touch empty; cp $SRC/text f", &["empty", "f"]),
            (
                "touch empty f; touch -d 2020-01-01 f; touch -c missing",
                &["empty ?", "f ?"],
            ),
        ],
    },
    Program {
        name: "metadata only",
        needs: &["chmod", "setfattr"],
        steps: &[
            ("cp $SRC/data f", &["f"]),
            (
                "chmod 600 f; chmod +x f; setfattr -n user.note -v kept f; cat f > /dev/null; exec 3<> f; exec 3>&-",
                &["f ?"],
            ),
        ],
    },
    Program {
        name: "truncate",
        needs: &["truncate", "perl"],
        steps: &[
            (
                "truncate -s 5000 new; cp $SRC/data f; cp $SRC/data g",
                &["new", "f", "g"],
            ),
            // By path, as perl does it, there is no open and no close.
            (
                "truncate -s 1000 f; perl -e 'truncate(\"g\", 10) or die $!'",
                &["f", "g"],
            ),
            ("truncate -s +1000 f; truncate -s 0 g", &["f", "g"]),
        ],
    },
    Program {
        name: "fallocate",
        needs: &["fallocate"],
        steps: &[
            ("fallocate -l 100000 new; cp $SRC/data f", &["new", "f"]),
            (
                "fallocate -p -o 4096 -l 8192 f; fallocate -o 100000 -l 4096 new",
                &["f", "new"],
            ),
        ],
    },
    Program {
        name: "mmap",
        needs: &["python3"],
        steps: &[(MMAP, &["f"]), (MMAP, &["f"])],
    },
    Program {
        name: "fork holds the descriptor",
        needs: &["bash", "mkfifo", "getfattr"],
        steps: &[(FORK, &["f"])],
    },
    Program {
        name: "O_TMPFILE",
        needs: &["python3"],
        steps: &[
            // Where it does not work python makes a file and unlinks it; nobody may see that.
            (
                "python3 -c 'import tempfile; f = tempfile.TemporaryFile(dir=\".\"); f.write(b\"x\" * 100000); f.flush()'",
                &[],
            ),
            (TMPFILE, &["f"]),
            (TMPFILE, &["g"]),
        ],
    },
    Program {
        name: "mktemp, kept",
        needs: &["mktemp"],
        steps: &[("f=$(mktemp ./XXXXXX); cat $SRC/text > $f; mv $f f", &["f"])],
    },
    Program {
        name: "rm before it is sent",
        needs: &["rm"],
        steps: &[(
            "touch f; rm f; exec 3> g; echo x >&3; rm g; exec 3>&-; echo kept > h",
            &["h"],
        )],
    },
    Program {
        name: "flock and lock files",
        needs: &["flock"],
        steps: &[(
            "flock Cargo.lock -c 'echo x >> f'; : > f.tmp; cp $SRC/text Cargo.lock",
            &["f", "Cargo.lock"],
        )],
    },
    Program {
        name: "pwrite, two descriptors",
        needs: &["python3"],
        steps: &[(PWRITE, &["f"])],
    },
];

/// Writes through the map after the descriptor is closed.
const MMAP: &str = "python3 - <<'END'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
fd = os.open('f', os.O_RDWR | os.O_CREAT, 0o644)
again = os.fstat(fd).st_size > 0
os.ftruncate(fd, 100000)
at = libc.mmap(None, 100000, 3, 1, fd, 0)
assert at != ctypes.c_void_p(-1).value
ctypes.memmove(at, b'early', 5)
os.close(fd)
ctypes.memmove(at + 50000, b'after the close', 15)
if again:
    ctypes.memmove(at + 99000, b'the second time', 15)
assert libc.munmap(at, 100000) == 0
END";

/// The program ends; a child of it writes on.
const FORK: &str = "mkfifo $TMP/go
bash -c 'exec 3> f; echo early >&3; { read x < $TMP/go; echo late >&3; } & exec 3>&-'
[ $HERE = reference ] || [ $(getfattr --only-values -n user.meshbox.state f) = open ]
echo > $TMP/go
until grep -q late f; do :; done";

/// An unnamed file that gets its name when it is whole; where that cannot be made, a temporary one.
const TMPFILE: &str = "python3 - $SRC/data <<'END'
import errno, os, sys, tempfile
name = 'g' if os.path.exists('f') else 'f'
data = open(sys.argv[1], 'rb').read() + name.encode()
try:
    fd = os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o644)
    os.write(fd, data)
    os.link(f'/proc/self/fd/{fd}', name, src_dir_fd=fd, follow_symlinks=True)
except OSError as error:
    assert error.errno == errno.EOPNOTSUPP, error
    fd, temporary = tempfile.mkstemp(dir='.')
    os.write(fd, data)
    os.rename(temporary, name)
os.close(fd)
END";

/// Two descriptors, blocks in any order.
const PWRITE: &str = "python3 - $SRC/data <<'END'
import os, sys
data = open(sys.argv[1], 'rb').read()
one = os.open('f', os.O_WRONLY | os.O_CREAT, 0o644)
two = os.open('f', os.O_WRONLY)
blocks = list(range(0, len(data), 4096))
for n, at in enumerate(reversed(blocks)):
    os.pwrite(two if n % 3 else one, data[at:at + 4096], at)
os.close(one)
os.fsync(two)
os.close(two)
END";

#[test]
fn unusual_ways_of_writing() {
    needs_mounts!();
    run_matrix(WAYS);
}
