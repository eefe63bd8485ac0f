//! `completions`: commands and flags for the shells that complete them.

use clap::{Command, ValueEnum};
use clap_complete::generate;

use super::exit::Failure;
use super::output::print;

/// A shell that completes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// `meshbox completions`; `all` is what can be typed.
pub(super) fn completions(shell: Shell, all: &Command) -> Result<(), Failure> {
    // The generators offer hidden commands too.
    let shown = all.get_subcommands().filter(|sub| !sub.is_hide_set());
    let mut command = Command::new("meshbox").subcommands(shown.cloned());
    let mut script = Vec::new();
    generate(
        clap_complete::Shell::from(shell),
        &mut command,
        "meshbox",
        &mut script,
    );
    print(&String::from_utf8_lossy(&script))
}
