//! Exit codes: other programs rely on them, `--help` documents them.

use std::fmt;

use crate::config::ConfigError;
use crate::control::ControlError;

/// What the process ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Success = 0,
    /// It failed; standard error says why.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// No daemon runs that could be asked.
    NoDaemon = 3,
    /// `wait`: the time was over first.
    Timeout = 4,
    /// `wait`: it will not be delivered as asked.
    NotDelivered = 5,
    /// `send --bundle`: the id was used for something else.
    Conflict = 6,
}

impl ExitCode {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::Failed,
        Self::Usage,
        Self::NoDaemon,
        Self::Timeout,
        Self::NotDelivered,
        Self::Conflict,
    ];

    /// The number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it means, for `--help`.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "done",
            Self::Failed => "failed, standard error says why",
            Self::Usage => "wrong command line or configuration",
            Self::NoDaemon => "no daemon to ask, or several and none named",
            Self::Timeout => "wait: the time was over first",
            Self::NotDelivered => {
                "wait: refused, cancelled, expired, no such file, or nobody to send it to"
            }
            Self::Conflict => "send: the bundle's id was used for other content",
        }
    }

    /// The number that mount(8) expects of a helper: 1 for a wrong call, 32 for a mount that failed.
    pub fn for_mount_program(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 1,
            Self::Failed | Self::NoDaemon | Self::Timeout | Self::NotDelivered | Self::Conflict => {
                32
            }
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

/// The table at the end of `--help`.
pub(super) fn table() -> String {
    let lines = ExitCode::ALL.map(|code| format!("\n  {}  {}", code.number(), code.meaning()));
    format!("Exit codes:{}", lines.concat())
}

/// What a command ends with when it does not succeed: a code, and words for standard error.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    /// One line or more; empty when all was said already.
    pub message: String,
}

impl Failure {
    /// A failure that is the user's to correct.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self {
            code: ExitCode::Usage,
            message: message.to_string(),
        }
    }

    /// Any other failure.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self {
            code: ExitCode::Failed,
            message: message.to_string(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(err: ConfigError) -> Self {
        Self::usage(err)
    }
}

impl From<ControlError> for Failure {
    fn from(err: ControlError) -> Self {
        let code = match &err {
            ControlError::NotRunning(_) => ExitCode::NoDaemon,
            ControlError::TooLong => ExitCode::Usage,
            ControlError::Io { .. }
            | ControlError::Silent(_)
            | ControlError::Garbled(_)
            | ControlError::Refused(_) => ExitCode::Failed,
        };
        Self {
            code,
            message: err.to_string(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        Self::failed(told(&err))
    }
}

/// An error with its causes, each once: some errors have their cause in their own words already.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

impl From<std::io::Error> for Failure {
    fn from(err: std::io::Error) -> Self {
        Self::failed(err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_a_contract() {
        let numbers = ExitCode::ALL.map(ExitCode::number);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(ExitCode::Timeout.number(), 4);
        assert_eq!(ExitCode::NotDelivered.number(), 5);
        assert_eq!(ExitCode::Usage.for_mount_program(), 1);
        assert_eq!(ExitCode::Failed.for_mount_program(), 32);
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let cause = || std::io::Error::from_raw_os_error(13);
        let told_by = ControlError::Io {
            action: "bind",
            path: "/s".into(),
            source: cause(),
        };
        let error = anyhow::Error::from(told_by).context("cannot start");
        assert_eq!(
            told(&error),
            "cannot start: cannot bind /s: Permission denied (os error 13)"
        );
        let plain = anyhow::Error::from(cause()).context("cannot open the log");
        assert_eq!(
            told(&plain),
            "cannot open the log: Permission denied (os error 13)"
        );
    }

    #[test]
    fn every_code_is_in_the_table() {
        let table = table();
        for code in ExitCode::ALL {
            let line = format!("  {}  {}", code.number(), code.meaning());
            assert!(
                table.lines().any(|found| found == line),
                "{line} in {table}"
            );
        }
    }
}
