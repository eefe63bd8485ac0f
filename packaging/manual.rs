//! Writes the manual pages: `cargo run --example manual -- DIR`.
//!
//! `man1/` has one page for the program and one for each command, from the command line itself; `man5/` the configuration file,
//! whose settings are the flags of `meshbox mount`; `man8/` the mount helper.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

// What the lower and the upper edge of a page say.
const VERSION: &str = concat!("meshbox ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "Meshbox";

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: manual DIR")?;
    write(Path::new(&dir))
}

/// Writes all pages below `dir`.
pub(crate) fn write(dir: &Path) -> Result<(), Box<dyn Error>> {
    for section in ["man1", "man5", "man8"] {
        fs::create_dir_all(dir.join(section))?;
    }
    let mut command = meshbox::cli::command().disable_help_subcommand(true);
    command.build(); // so that the commands know the program's name
    let commands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    for command in std::iter::once(&command).chain(commands) {
        let page = clap_mangen::Man::new(command.clone());
        page.source(VERSION)
            .manual(MANUAL)
            .generate_to(dir.join("man1"))?;
    }
    fs::write(dir.join("man5/meshbox.toml.5"), settings().render())?;
    fs::write(dir.join("man8/mount.meshbox.8"), helper().render())?;
    Ok(())
}

fn page(name: &str, section: &str, about: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", [name, section, "", VERSION, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {about}"))]);
    roff
}

fn heading(roff: &mut Roff, text: &str) {
    roff.control("SH", [text]);
}

fn paragraph(roff: &mut Roff, text: impl Into<Vec<Inline>>) {
    roff.control("PP", []);
    roff.text(text);
}

fn item(roff: &mut Roff, term: impl Into<Vec<Inline>>, text: impl Into<Vec<Inline>>) {
    roff.control("TP", []);
    roff.text(term);
    roff.text(text);
}

/// Lines as they stand.
fn example(roff: &mut Roff, lines: &[&str]) {
    roff.control("PP", []);
    roff.control("RS", ["4"]);
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(*line)]);
    }
    roff.control("fi", []);
    roff.control("RE", []);
}

fn see_also(roff: &mut Roff, pages: &str) {
    heading(roff, "SEE ALSO");
    paragraph(roff, [roman(pages)]);
}

/// meshbox.toml(5).
fn settings() -> Roff {
    let mut roff = page("meshbox.toml", "5", "configuration of a Meshbox mount");
    heading(&mut roff, "DESCRIPTION");
    paragraph(
        &mut roff,
        [
            roman("The configuration of one mount, in TOML. It is read from "),
            bold("config.toml"),
            roman(" in the state directory, or from the file that "),
            bold("--config"),
            roman(" or the source in fstab names. "),
            bold("/etc/meshbox/NAME.toml"),
            roman(" belongs to the service "),
            bold("meshbox@NAME"),
            roman(". Relative paths start at the directory of the file."),
        ],
    );
    paragraph(
        &mut roff,
        [
            roman("Every setting is also a flag of "),
            bold("meshbox mount"),
            roman(
                " with dashes for underscores, an option after -o, and a variable in capitals after MESHBOX_. Flags beat ",
            ),
            roman("options, these beat variables, and these beat the file. "),
            bold("meshbox config"),
            roman(" shows what holds."),
        ],
    );
    heading(&mut roff, "SETTINGS");
    let command = meshbox::cli::command();
    let mount = command.find_subcommand("mount").cloned();
    let mount = mount.unwrap_or_default();
    let flags = mount.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut topic = None;
    for arg in flags {
        let Some(flag) = arg
            .get_long()
            .filter(|flag| *flag != "config" && *flag != "help")
        else {
            continue;
        };
        if arg.get_help_heading() != topic {
            topic = arg.get_help_heading();
            roff.control("SS", [topic.unwrap_or_default()]);
        }
        let value = arg.get_value_names().and_then(|names| names.first());
        let value = value.map_or("VALUE", |name| name.as_str());
        let mut term = vec![bold(flag.replace('-', "_")), roman(" = ")];
        if matches!(arg.get_action(), clap::ArgAction::Append) {
            term.extend([roman("["), italic(value), roman(", …]")]);
        } else {
            term.push(italic(value));
        }
        let help = arg.get_long_help().or(arg.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let help = format!("{help}. {}", meshbox::cli::more_about(flag));
        item(&mut roff, term, [roman(help)]);
    }
    heading(&mut roff, "RECIPIENTS");
    paragraph(
        &mut roff,
        [
            roman("Without a word on it a file is for every member. A "),
            bold("[[route]]"),
            roman(
                " says otherwise for what lies below a path of the outbox; the longest path wins. ",
            ),
            bold("[groups]"),
            roman(" gives names to sets of members."),
        ],
    );
    example(
        &mut roff,
        &[
            "[groups]",
            "hq = [\"birch\", \"cedar\"]",
            "",
            "[[route]]",
            "path = \"ops\"",
            "to = [\"@hq\", \"dogwood\"]",
            "priority = \"critical\"",
            "lifetime = \"2h\"",
        ],
    );
    heading(&mut roff, "FILES");
    item(
        &mut roff,
        [bold("/usr/share/doc/meshbox/examples/meshbox.toml.example")],
        [roman("every key, with its default or an example")],
    );
    see_also(
        &mut roff,
        "meshbox-mount(1), meshbox-config(1), mount.meshbox(8)",
    );
    roff
}

/// mount.meshbox(8).
fn helper() -> Roff {
    let mut roff = page(
        "mount.meshbox",
        "8",
        "mount a Meshbox mailbox from mount(8) and fstab(5)",
    );
    heading(&mut roff, "SYNOPSIS");
    roff.text([
        bold("mount -t meshbox"),
        roman(" [-o "),
        italic("OPTIONS"),
        roman("] "),
        italic("SOURCE MOUNTPOINT"),
    ]);
    heading(&mut roff, "DESCRIPTION");
    paragraph(
        &mut roff,
        [
            roman("The program that mount(8) calls for the types "),
            bold("meshbox"),
            roman(" and "),
            bold("fuse.meshbox"),
            roman(". It is a link to meshbox(1), and does what "),
            bold("meshbox mount"),
            roman(" does: it returns when the mailbox serves, or says why it does not."),
        ],
    );
    paragraph(
        &mut roff,
        [
            italic("SOURCE"),
            roman(
                " is a configuration file, a state directory, or a word without a slash, which is only a label.",
            ),
        ],
    );
    heading(&mut roff, "OPTIONS");
    paragraph(
        &mut roff,
        [
            roman("Every long flag of "),
            bold("meshbox mount"),
            roman(
                ", with dashes or underscores, beside the usual options of mount(8). A comma in a value is written ",
            ),
            bold("\\,"),
            roman(". Of use in fstab:"),
        ],
    );
    for (option, text) in [
        (
            "_netdev,nofail",
            "The machine starts without a network, and when the mount fails.",
        ),
        (
            "allow_other",
            "Other users may use the mount, within the modes of its files.",
        ),
        (
            "noauto,user",
            "Any user may mount it; fusermount3 of the package fuse3 does it for them.",
        ),
        (
            "noauto,x-systemd.automount",
            "It is mounted at the first access.",
        ),
        ("ro", "Nothing can be changed through the mount."),
    ] {
        item(&mut roff, [bold(option)], [roman(text)]);
    }
    heading(&mut roff, "EXIT STATUS");
    paragraph(
        &mut roff,
        [roman(
            "0 when it serves; 1 for a wrong call or configuration; 32 when the mount failed.",
        )],
    );
    heading(&mut roff, "EXAMPLES");
    example(
        &mut roff,
        &["/etc/meshbox/srv-share.toml  /srv/share  meshbox  _netdev,nofail,allow_other  0  0"],
    );
    see_also(
        &mut roff,
        "meshbox(1), meshbox-mount(1), meshbox.toml(5), mount(8), fstab(5)",
    );
    roff
}
