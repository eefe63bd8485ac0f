//! What the package is made of, without making it; `packaging/test-deb` installs the real one on a booted system.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{COMMAND, meshbox, run};

#[allow(dead_code)]
#[path = "../packaging/manual.rs"]
mod manual;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_command_and_every_setting_has_its_place_in_the_manual() {
    let dir = tempfile::tempdir().unwrap();
    manual::write(dir.path()).unwrap();
    let command = ::meshbox::cli::command();
    for sub in command.get_subcommands() {
        let page = dir
            .path()
            .join(format!("man1/meshbox-{}.1", sub.get_name()));
        assert_eq!(page.exists(), !sub.is_hide_set(), "{}", page.display());
        if let Ok(text) = fs::read_to_string(&page) {
            let version = concat!("\"meshbox ", env!("CARGO_PKG_VERSION"), "\" Meshbox\n");
            assert!(text.contains(version), "{text}");
        }
    }
    let program = fs::read_to_string(dir.path().join("man1/meshbox.1")).unwrap();
    assert!(program.contains("Exit codes"), "{program}");
    let settings = fs::read_to_string(dir.path().join("man5/meshbox.toml.5")).unwrap();
    let mount = command.find_subcommand("mount").unwrap();
    let flags = mount.get_arguments().filter_map(|arg| arg.get_long());
    let mut count = 0;
    for flag in flags.filter(|flag| *flag != "config" && *flag != "help") {
        count += 1;
        let key = format!("\\fB{}\\fR = ", flag.replace('-', "_"));
        assert!(settings.contains(&key), "{key} in {settings}");
    }
    assert!(count > 30, "{count}");
    assert!(dir.path().join("man8/mount.meshbox.8").exists());
}

#[test]
fn completions_offer_commands_and_flags() {
    let script = run(&mut meshbox(&["completions", "bash"]), COMMAND)
        .ok()
        .stdout;
    let offered = |words: &str, at: usize| {
        let line = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={at}; _meshbox meshbox \"${{COMP_WORDS[{at}]}}\" \
             \"${{COMP_WORDS[{at}-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        run(Command::new("bash").args(["-c", &line]), COMMAND)
            .ok()
            .stdout
    };
    assert_eq!(offered("meshbox stat", 1).trim(), "status");
    assert_eq!(offered("meshbox status --j", 2).trim(), "--json");
    let all = offered("meshbox ''", 1);
    assert!(all.contains("mount") && !all.contains("announce"), "{all}");
    for shell in ["zsh", "fish"] {
        let script = run(&mut meshbox(&["completions", shell]), COMMAND)
            .ok()
            .stdout;
        assert!(script.contains("umount"), "{shell}");
    }
    run(&mut meshbox(&["completions", "tcsh"]), COMMAND).fails_saying(&["bash", "zsh", "fish"]);
}

/// What the package takes from the tree is there, and every unit is taken.
#[test]
fn the_package_has_what_it_names() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let package = manifest.split("[package.metadata.deb]").nth(1).unwrap();
    let sources = package
        .lines()
        .filter_map(|line| line.strip_prefix("    [\"")?.split('"').next());
    let sources: Vec<&str> = sources.collect();
    assert!(sources.len() > 10, "{sources:?}");
    for source in sources
        .iter()
        .filter(|source| !source.starts_with("target/"))
    {
        let path = source.trim_end_matches("/*.md");
        assert!(root().join(path).exists(), "{source}");
    }
    for unit in [
        "packaging/systemd/meshbox@.service",
        "packaging/systemd/user/meshbox@.service",
    ] {
        assert!(sources.contains(&unit), "{unit}");
        let text = fs::read_to_string(root().join(unit)).unwrap();
        assert!(
            text.contains("Type=notify\nExecStart=/usr/bin/meshbox mount --foreground "),
            "{unit}"
        );
    }
    for script in ["postinst", "prerm", "postrm"] {
        run(
            Command::new("sh")
                .arg("-n")
                .arg(root().join("packaging/deb").join(script)),
            COMMAND,
        )
        .ok();
    }
}
