//! Times before 1970, and times of mapped files.

use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use fuser::TimeOrNow;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

use super::super::convert::{set_time, system_time};
use super::*;
use crate::fs::{SetTime, Time};

/// What fuser 0.18 makes of a time of the protocol.
fn by_fuser(secs: i64, nanos: u32) -> SystemTime {
    if secs >= 0 {
        UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
    } else {
        UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
    }
}

/// What fuser 0.18 puts into a reply.
fn into_reply(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs().cast_signed(), after.subsec_nanos()),
        Err(before) => match (
            before.duration().as_secs(),
            before.duration().subsec_nanos(),
        ) {
            (secs, 0) => (0_i64.wrapping_sub_unsigned(secs), 0),
            (secs, nanos) => (-secs.cast_signed() - 1, 1_000_000_000 - nanos),
        },
    }
}

#[test]
fn every_time_comes_in_and_goes_out_as_it_was() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut times = Vec::new();
    for secs in [
        i64::MIN + 1,
        i64::MAX,
        -1,
        0,
        1,
        -2,
        -2_208_988_800,
        1 << 34,
    ] {
        for nanos in [0, 1, 499_999_999, 500_000_000, 999_999_999] {
            times.push((secs, nanos));
        }
    }
    // The kernel gives the earliest time it knows no fraction.
    times.push((i64::MIN, 0));
    for shift in 0..63 {
        for _ in 0..20 {
            let secs = next().cast_signed() >> shift;
            times.push((secs.max(i64::MIN + 1), (next() % 1_000_000_000) as u32));
        }
    }
    for (secs, nanos) in times {
        let came = set_time(TimeOrNow::SpecificTime(by_fuser(secs, nanos)));
        let time = Time { secs, nanos };
        assert_eq!(came, SetTime::At(time));
        assert_eq!(into_reply(system_time(time)), (secs, nanos));
    }
}

#[test]
fn times_before_1970_pass_through_the_mount() {
    let Some(m) = Mounted::new() else { return };
    m.sh("echo x > f");
    let file = m.outbox().join("f");
    for (secs, nanos) in [
        (-1, 500_000_000),
        (-1, 1),
        (-2, 999_999_999),
        (-1, 0),
        (-1_000_000_000, 250_000_000),
        (0, 1),
        (1_000_000_000, 750_000_000),
    ] {
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        for path in [&file, &m.t.outbox("f")] {
            let meta = fs::metadata(path).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos), "{path:?}");
            assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos), "{path:?}");
        }
    }
}

/// The sealer reads every file, and `cp -p` sets the access time just before the last close.
#[test]
fn sealing_leaves_the_access_time() {
    let Some(m) = Mounted::new() else { return };
    m.sh("exec 3>f; echo x >&3; touch -a -d @1000 f; exec 3>&-");
    m.t.wait_sealed(|sealed| *sealed == Sealed::One("f".to_owned(), None));
    for path in [m.outbox().join("f"), m.t.outbox("f")] {
        assert_eq!(fs::metadata(&path).unwrap().atime(), 1000, "{path:?}");
    }
}

#[test]
fn a_time_set_while_mapped_pages_are_dirty_stays() {
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
fd=os.open('m',os.O_RDWR|os.O_CREAT,0o644); os.ftruncate(fd,8192)
p=mmap.mmap(fd,8192); p[0:5]=b'bytes'; p[5000:5005]=b'bytes'
os.utime('m',(1000,1000)); os.close(fd); p.close()
assert os.stat('m').st_mtime==1000, os.stat('m').st_mtime
fd=os.open('m',os.O_RDWR); p=mmap.mmap(fd,8192); os.close(fd); p[0:5]=b'later'; p.close()
assert os.stat('m').st_mtime>1000000
\"");
    assert_eq!(&fs::read(m.t.outbox("m")).unwrap()[..5], b"later");
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 7,
            tv_nsec: 7,
        },
    };
    utimensat(CWD, m.outbox().join("m"), &times, AtFlags::empty()).unwrap();
    assert_eq!(fs::metadata(m.outbox().join("m")).unwrap().mtime(), 7);
}
