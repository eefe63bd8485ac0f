//! Whether the process that closes a file is being killed.
//!
//! FLUSH is synchronous: the process that closes still exists while it is answered. If a signal is ending it, its
//! flags in `/proc` say that it is exiting and its exit code names the signal. A program that ends by itself, whatever
//! its status, shows no signal. Where `/proc` does not show the process (another pid namespace, another user), the
//! answer is "not killed", which is how every other file system behaves.
//!
//! `stat` is read only of a task that has given up its descriptor table. A task in execve(2) closes its close-on-exec
//! files while it holds the lock that `stat` waits for: reading it then would have that task wait for our answer and us
//! for that task, for ever, and every `ps` on the machine with us. The link `exe`, `io`, `maps` and `wchan` wait for the
//! same lock; `status` and the directory `fd` do not (measured on Linux 6.18). An exiting task shows `FDSize: 0` in
//! `status` before its files are closed. The size of `fd` gives the usual answer, "has files", at a tenth of the cost.
//!
//! A program that catches the signal, closes its file and only then ends (dd on SIGINT) cannot be told from one that
//! has finished.

use std::fs;

/// `PF_EXITING` of the kernel's task flags.
const PF_EXITING: u64 = 0x4;

/// What `/proc/<tid>/stat` says about the end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    exiting: bool,
    signal: u32,
}

/// Reads the fields we need from the text of a `stat` file. The name of the program stands in parentheses and may
/// itself hold spaces and parentheses, so fields are counted from the last `)`.
fn parse_stat(text: &str) -> Option<Ending> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 (state) is the first after the name; flags is field 9, exit_code field 52.
    let flags: u64 = fields.get(9 - 3)?.parse().ok()?;
    let exit_code: i64 = fields.get(52 - 3)?.parse().ok()?;
    Some(Ending {
        exiting: flags & PF_EXITING != 0,
        signal: u32::try_from(exit_code & 0x7f).ok()?,
    })
}

/// Whether the task `tid` is being ended by a signal.
pub(crate) fn is_being_killed(tid: u32) -> bool {
    if tid == 0 || has_open_files(tid) || !has_given_up_its_files(tid) {
        return false;
    }
    fs::read_to_string(format!("/proc/{tid}/stat"))
        .ok()
        .and_then(|text| parse_stat(&text))
        .is_some_and(|ending| ending.exiting && ending.signal != 0)
}

/// Whether the task is known to have descriptors; since Linux 6.2 the size of this directory is their number.
fn has_open_files(tid: u32) -> bool {
    rustix::fs::stat(format!("/proc/{tid}/fd")).is_ok_and(|stat| stat.st_size > 0)
}

fn has_given_up_its_files(tid: u32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/status"))
        .is_ok_and(|text| status_field(&text, "FDSize:") == Some("0"))
}

fn status_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    Some(
        text.lines()
            .find_map(|line| line.strip_prefix(name))?
            .trim(),
    )
}

/// The process (thread group) a task belongs to; the task itself when that cannot be read.
pub(crate) fn process_of(tid: u32) -> u32 {
    fs::read_to_string(format!("/proc/{tid}/status"))
        .ok()
        .and_then(|text| parse_tgid(&text))
        .unwrap_or(tid)
}

fn parse_tgid(text: &str) -> Option<u32> {
    status_field(text, "Tgid:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(comm: &str, flags: u64, exit_code: u32) -> String {
        let mut fields = vec![
            "S".to_string(),
            "1".into(),
            "2".into(),
            "3".into(),
            "0".into(),
            "-1".into(),
        ];
        fields.push(flags.to_string());
        while fields.len() < 49 {
            fields.push("0".into());
        }
        fields.push(exit_code.to_string());
        format!("4242 ({comm}) {}\n", fields.join(" "))
    }

    #[test]
    fn a_running_program_is_not_ending() {
        let ending = parse_stat(&stat("cp", 0x40_0000, 0));
        assert_eq!(
            ending,
            Some(Ending {
                exiting: false,
                signal: 0
            })
        );
    }

    #[test]
    fn an_interrupted_program_shows_its_signal() {
        let ending = parse_stat(&stat("cp", 0x40_0004, 2));
        assert_eq!(
            ending,
            Some(Ending {
                exiting: true,
                signal: 2
            })
        );
    }

    #[test]
    fn a_program_that_fails_by_itself_shows_no_signal() {
        let ending = parse_stat(&stat("cp", 0x40_0004, 256));
        assert_eq!(
            ending,
            Some(Ending {
                exiting: true,
                signal: 0
            })
        );
    }

    #[test]
    fn a_core_dump_bit_does_not_hide_the_signal() {
        let ending = parse_stat(&stat("cp", 0x4, 128 + 11));
        assert_eq!(
            ending,
            Some(Ending {
                exiting: true,
                signal: 11
            })
        );
    }

    #[test]
    fn names_with_spaces_and_parentheses_do_not_shift_the_fields() {
        for comm in ["a b", "x) S 1 (y", "((", "))"] {
            let ending = parse_stat(&stat(comm, 0x4, 9));
            assert_eq!(
                ending,
                Some(Ending {
                    exiting: true,
                    signal: 9
                }),
                "{comm}"
            );
        }
    }

    #[test]
    fn short_or_foreign_text_is_no_answer() {
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) S 1 2"), None);
        assert_eq!(parse_stat("no parentheses here"), None);
    }

    #[test]
    fn this_test_is_not_being_killed() {
        assert!(!is_being_killed(std::process::id()));
        assert!(!is_being_killed(0));
        assert_eq!(process_of(std::process::id()), std::process::id());
    }
}
