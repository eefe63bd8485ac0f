//! What the process finds around it.

use std::path::PathBuf;

/// What the surroundings of the process say; a value so that tests can bring their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Whether we are root.
    pub root: bool,
    /// `$XDG_STATE_HOME`, if absolute.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`, or the home directory that the user database names.
    pub home: Option<PathBuf>,
    /// The machine's name.
    pub hostname: String,
    /// Processors that we may use.
    pub processors: usize,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        let dir = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            root: rustix::process::geteuid().is_root(),
            xdg_state_home: dir("XDG_STATE_HOME"),
            // mount(8) takes $HOME away before it calls a helper for a user.
            home: std::env::home_dir().filter(|path| path.is_absolute()),
            hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Where the states of all mounts are, unless `--state` says otherwise.
    pub(crate) fn state_home(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/var/lib/meshbox"));
        }
        let home = self
            .xdg_state_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".local/state")))?;
        Some(home.join("meshbox"))
    }
}
