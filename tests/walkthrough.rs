//! The walk-throughs of the documents, exactly as they stand there.
//!
//! A console block whose prompt names a machine (`alder$ `) is run, line by line, on machines that are namespaces: each has its
//! own name, network, mounts, processes, `/etc`, home and state, and the program installed in `/usr/bin`. Lines without
//! a prompt are what the command before prints; `…` stands for anything. Blocks with a bare `$ ` are not run;
//! `cli::documents` checks their command lines.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::lan::Lan;
use common::{ARRIVES, BIN, COMMAND, Ran, run, wait_until};
use tempfile::TempDir;

/// Machines that appear in the documents.
const MACHINES: [&str; 4] = ["alder", "birch", "cedar", "dogwood"];

/// All sections that have something to be run. Each has its test below.
const SECTIONS: [(&str, &str); 7] = [
    ("README.md", "Two machines"),
    ("packaging/doc/guide.md", "A third machine"),
    ("packaging/doc/guide.md", "A machine that broke"),
    (
        "packaging/doc/guide.md",
        "A machine that was stolen or lost",
    ),
    ("packaging/doc/guide.md", "Cancelling"),
    ("packaging/doc/guide.md", "At boot: fstab"),
    ("packaging/doc/guide.md", "Leaving a group"),
];

/// What becomes of a machine before its first command: its own files over those of the host, and the program installed.
const BOOT: &str = r#"
set -e
# Mailboxes of the host are not on this machine, and their daemons must not be kept by it.
sed -n 's/^\S* \S* \S* \S* \(\S*\) .* - fuse.meshbox .*/\1/p' /proc/self/mountinfo | while read -r at; do umount -l "$at"; done
echo "$1" > /proc/sys/kernel/hostname
mkdir "$2/over"
mount -t tmpfs none "$2/over"
for dir in etc usr/bin usr/sbin; do
    mkdir -p "$2/over/$dir/upper" "$2/over/$dir/work"
    mount -t overlay -o "lowerdir=/$dir,upperdir=$2/over/$dir/upper,workdir=$2/over/$dir/work" overlay "/$dir"
done
rm -f /usr/bin/meshbox /usr/sbin/mount.meshbox /usr/sbin/mount.fuse.meshbox
touch /usr/bin/meshbox
mount --bind "$3" /usr/bin/meshbox
rm -f /usr/bin/scp
printf '#!/bin/sh\ncp "$1" "%s/../${2%%:}/home/"\n' "$2" > /usr/bin/scp
chmod +x /usr/bin/scp
: > /etc/fstab
rm -rf /etc/meshbox
mount --bind "$2/home" /root
mount -t tmpfs none /srv
mount -t tmpfs none /var/lib
mkdir /var/lib/meshbox
mount --bind "$2/state" /var/lib/meshbox
touch "$2/up"
exec sleep infinity
"#;

/// A machine: the process that keeps its namespaces. When it ends, everything on it does.
struct Machine {
    init: Child,
    root: PathBuf,
}

impl Machine {
    fn boot(name: &str, network: &str, all: &Path) -> Self {
        let root = all.join(name);
        fs::create_dir_all(root.join("home/photos")).unwrap();
        fs::create_dir(root.join("state")).unwrap();
        for file in ["report.pdf", "photos/one.jpg", "photos/two.jpg"] {
            fs::write(root.join("home").join(file), file).unwrap();
        }
        let init = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{network}"))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork"])
            .args(["--kill-child", "--propagation", "private", "--mount-proc"])
            .args(["sh", "-c", BOOT, "boot", name])
            .arg(&root)
            .arg(BIN)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self { init, root };
        wait_until(&format!("{name} has booted"), COMMAND, || {
            machine.root.join("up").exists()
        });
        machine
    }

    fn run(&self, line: &str) -> Ran {
        let pid = self.init.id();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &pid.to_string(), "--mount", "--uts", "--net"])
            .arg(format!("--pid=/proc/{pid}/ns/pid_for_children"))
            .args(["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8"])
            .arg("PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .args([
                "bash",
                "-c",
                &format!("exec 2>&1; cd /root || exit; {line}"),
            ]);
        run(&mut command, COMMAND)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.init.kill().ok();
        self.init.wait().ok();
    }
}

/// One command of a document, and what it is to print.
#[derive(Debug)]
struct Step {
    machine: String,
    line: String,
    prints: Vec<String>,
}

/// A section of a document, by its heading.
fn section(document: &str, heading: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let mut lines = text.lines().skip_while(|line| {
        line.trim_start_matches('#').trim_start() != heading || !line.starts_with('#')
    });
    let level = lines
        .next()
        .unwrap_or_else(|| panic!("{document} has no section {heading}"));
    let level = level.bytes().take_while(|b| *b == b'#').count();
    let mut fenced = false;
    lines
        .take_while(|line| {
            fenced ^= line.starts_with("```");
            let depth = line.bytes().take_while(|b| *b == b'#').count();
            fenced || depth == 0 || depth > level
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The machine whose prompt a line begins with, and the command.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let (machine, command) = line.split_once(['$', '#'])?;
    let command = command.strip_prefix(' ')?;
    MACHINES.contains(&machine).then_some((machine, command))
}

/// What is to be run of a text.
fn steps(text: &str) -> Vec<Step> {
    let blocks = text.split("```console\n").skip(1);
    let blocks = blocks.map(|block| block.split("\n```").next().unwrap());
    let mut steps: Vec<Step> = Vec::new();
    for block in blocks.filter(|block| block.lines().next().and_then(prompt).is_some()) {
        for line in block.lines() {
            match prompt(line) {
                Some((machine, command)) => steps.push(Step {
                    machine: machine.to_owned(),
                    line: command.to_owned(),
                    prints: Vec::new(),
                }),
                None => steps.last_mut().unwrap().prints.push(line.to_owned()),
            }
        }
    }
    steps
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line is as the document says.
fn is_like(line: &str, said: &str) -> bool {
    let (line, said) = (words(line), words(said));
    let mut rest = line.as_str();
    for (at, part) in said.split('…').map(str::trim).enumerate() {
        match rest.find(part) {
            Some(found) if at > 0 || found == 0 => rest = &rest[found + part.len()..],
            _ => return false,
        }
    }
    said.ends_with('…') || rest.is_empty()
}

impl Step {
    /// It changes nothing, so it may be asked again until what it shows has come.
    fn only_looks(&self) -> bool {
        let looks = [
            "ls ",
            "getfattr ",
            "findmnt ",
            "meshbox peers",
            "meshbox status",
        ];
        looks.iter().any(|look| self.line.starts_with(look))
    }

    /// Whether the command did what the document says: in its order, and for a listing nothing else.
    fn is_fulfilled(&self, ran: &Ran) -> bool {
        let mut lines = ran.stdout.lines();
        let found = self
            .prints
            .iter()
            .all(|said| lines.any(|line| is_like(line, said)));
        let exact =
            !self.line.starts_with("ls ") || ran.stdout.lines().count() == self.prints.len();
        ran.code == Some(0) && found && exact
    }
}

/// The machines of one walk.
struct Walk {
    machines: BTreeMap<String, Machine>,
    lan: Lan,
    all: TempDir,
}

impl Walk {
    fn begin() -> Self {
        Self {
            machines: BTreeMap::new(),
            lan: Lan::with_addresses(MACHINES.len()),
            all: tempfile::Builder::new()
                .prefix("meshbox-walk-")
                .tempdir()
                .unwrap(),
        }
    }

    /// Runs a section. A machine that was not named before is new.
    #[track_caller]
    fn through(&mut self, (document, heading): (&str, &str)) {
        let steps = steps(&section(document, heading));
        assert!(!steps.is_empty(), "{document}, {heading}");
        // `scp` needs the home of a machine that is still to be named.
        for step in &steps {
            let network = MACHINES
                .iter()
                .position(|name| *name == step.machine)
                .unwrap();
            let network = &self.lan.hosts[network];
            self.machines
                .entry(step.machine.clone())
                .or_insert_with(|| Machine::boot(&step.machine, network, self.all.path()));
        }
        for step in steps {
            let machine = &self.machines[&step.machine];
            let end = Instant::now() + ARRIVES;
            let mut ran = machine.run(&step.line);
            while step.only_looks() && !step.is_fulfilled(&ran) && Instant::now() < end {
                ran = machine.run(&step.line);
            }
            assert!(
                step.is_fulfilled(&ran),
                "{document}, {heading}: {step:#?} gave {ran:#?}"
            );
        }
    }

    /// A machine is gone, and `alder` has seen it.
    #[track_caller]
    fn lose(&mut self, name: &str) {
        self.machines.remove(name).unwrap();
        wait_until(&format!("alder has lost {name}"), ARRIVES, || {
            let ran = self.machines["alder"].run("meshbox peers");
            ran.code == Some(0) && !ran.stdout.contains("  connected")
        });
    }
}

#[test]
fn two_machines() {
    needs_networks!();
    Walk::begin().through(SECTIONS[0]);
}

#[test]
fn a_third_machine() {
    needs_networks!();
    let mut walk = Walk::begin();
    walk.through(SECTIONS[0]);
    walk.through(SECTIONS[1]);
}

#[test]
fn a_machine_that_broke() {
    needs_networks!();
    let mut walk = Walk::begin();
    walk.through(SECTIONS[0]);
    walk.lose("birch");
    walk.through(SECTIONS[2]);
}

#[test]
fn a_machine_that_was_stolen() {
    needs_networks!();
    let mut walk = Walk::begin();
    walk.through(SECTIONS[0]);
    walk.lose("birch");
    walk.through(SECTIONS[3]);
}

#[test]
fn cancelling() {
    needs_networks!();
    let mut walk = Walk::begin();
    walk.through(SECTIONS[0]);
    walk.through(SECTIONS[4]);
}

#[test]
fn fstab() {
    needs_networks!();
    Walk::begin().through(SECTIONS[5]);
}

#[test]
fn leaving_a_group() {
    needs_networks!();
    let mut walk = Walk::begin();
    walk.through(SECTIONS[0]);
    walk.through(SECTIONS[6]);
}

#[test]
fn no_walk_through_is_left_out() {
    for document in ["README.md", "packaging/doc/guide.md"] {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
        let sections = SECTIONS.iter().filter(|(of, _)| *of == document);
        let run: usize = sections
            .map(|(_, heading)| steps(&section(document, heading)).len())
            .sum();
        assert_eq!(steps(&text).len(), run, "{document}");
    }
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/doc")).unwrap()
    {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            path.ends_with("guide.md") || steps(&text).is_empty(),
            "{path:?}"
        );
    }
}

#[test]
fn what_a_document_says_of_an_output_is_compared() {
    assert!(is_like(
        "ready: share   you are: alder (ab12…)   peers: 0",
        "ready: share you are: alder (…) peers: 0"
    ));
    assert!(is_like(
        "  cancelled    0/1   10 B  report.pdf",
        "  cancelled …  report.pdf"
    ));
    assert!(!is_like(
        "  delivered    0/1   10 B  report.pdf",
        "  cancelled …  report.pdf"
    ));
    assert!(!is_like("peers: 01", "peers: 0"));
    assert!(is_like("removed birch", "removed …"));
}
