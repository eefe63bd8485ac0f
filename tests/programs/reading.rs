//! Programs that follow a file in the inbox.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::common::{ARRIVES, Node, sha256, wait_until};
use crate::needs_mounts;

/// A program in the background, with its output in a file.
struct Following {
    child: Child,
    output: std::path::PathBuf,
}

impl Following {
    fn start(command: &mut Command, output: std::path::PathBuf) -> Self {
        let file = File::create(&output).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(file)
            .spawn()
            .unwrap();
        Self { child, output }
    }

    fn shown(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Every version is another file under the same name; `tail -F` notices and shows it from its beginning.
#[test]
fn tail_follows_a_file_in_the_inbox_through_its_versions() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let tail = Following::start(
        Command::new("tail")
            .args(["-F", "-n", "+1", "-s", "0.1"])
            .arg(birch.inbox("log")),
        birch.root().join("tail"),
    );
    let mut content = String::new();
    let follow = |content: &str| {
        birch.wait_arrived("log", &sha256(content.as_bytes()));
        wait_until("tail has shown the version", ARRIVES, || {
            tail.shown().ends_with(content)
        });
    };
    for version in 1..=4 {
        let line = format!("line {version}\n");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(alder.outbox("log"))
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
        drop(file);
        content.push_str(&line);
        follow(&content);
    }
    assert_eq!(
        tail.shown(),
        "line 1\n\
         line 1\nline 2\n\
         line 1\nline 2\nline 3\n\
         line 1\nline 2\nline 3\nline 4\n",
        "each version once"
    );
    // Rotated: shorter than before.
    fs::write(alder.outbox("log"), "rotated\n").unwrap();
    follow("rotated\n");
    // Consumed, and sent again.
    fs::remove_file(birch.inbox("log")).unwrap();
    fs::write(alder.outbox("log"), "after the consumption\n").unwrap();
    follow("after the consumption\n");
}
