//! The example configuration, made from the table of settings: `packaging/meshbox.toml.example` and `meshbox config
//! --example`.

use super::table::{SETTINGS, Setting, Topic};

const HEAD: &str = "\
Configuration of one mount: `meshbox mount --config FILE MOUNTPOINT`, or the source in fstab. Every key is also a flag \
(`no_mdns` is `--no-mdns`), a mount option and a variable (`MESHBOX_NO_MDNS`). Flags beat variables, variables beat this \
file. Relative paths start at this file's directory. What is commented out shows the default or an example; `meshbox \
config` prints what holds, and why. Sizes are bytes or have a unit: 10GiB, 500MB. SIGHUP \
(`systemctl reload`) has a running daemon take over what says so below, and the recipients. `meshbox config \
--example` prints this file.";

const TABLES: &str = "\
# Names for several members, used as `@hq` in routes and in `meshbox send --to`.
#[groups]
#hq = [\"birch\", \"cedar\"]

# Whom files below a directory of the outbox go to, how urgently (bulk, low, routine, priority, critical) and for how long.
# The longest path counts; \"/\" is all of the outbox. May be repeated.
#[[route]]
#path = \"ops\"
#to = [\"@hq\", \"dogwood\"]
#priority = \"critical\"
#lifetime = \"2h\"
";

/// Longest line.
const WIDTH: usize = 118;

/// The whole file: each setting commented out, with what it means.
pub(crate) fn example() -> String {
    let mut out = comment(HEAD);
    for topic in Topic::ALL {
        out += &format!("\n## {}\n", topic.title());
        for setting in SETTINGS.iter().filter(|setting| setting.topic == topic) {
            out += &entry(setting);
        }
    }
    out += "\n## Recipients\n\n";
    out + TABLES
}

fn entry(setting: &Setting) -> String {
    let mut words = format!("{}.", setting.help);
    if !setting.more.is_empty() {
        words = format!("{words} {}", setting.more);
    }
    if setting.live {
        words += " Read again at SIGHUP.";
    }
    let shown = setting.example.trim_matches('"');
    if !setting.default.is_empty() && setting.default != shown {
        words = format!("{words} Default: {}.", setting.default);
    }
    format!(
        "\n{}#{} = {}\n",
        comment(&words),
        setting.name,
        setting.example
    )
}

/// `text` in lines that begin with `# `.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            out += &line;
            out.push('\n');
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line += word;
    }
    out + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::{Inputs, Layer, Source, Surroundings, resolve};
    use super::*;

    const FILE: &str = "packaging/meshbox.toml.example";

    /// `MESHBOX_WRITE=1 cargo test --lib the_example` writes it anew.
    #[test]
    fn the_example_in_the_package_is_the_one_that_is_made() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        if std::env::var_os("MESHBOX_WRITE").is_some() {
            std::fs::write(&path, example()).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap();
        assert!(
            there == example(),
            "{FILE} is not what the table of settings says; write it with MESHBOX_WRITE=1"
        );
    }

    #[test]
    fn the_example_is_valid_with_every_key_turned_on() {
        let text: String = example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with([' ', '#']) && !key.is_empty() => format!("{key}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        let mut table: toml::Table = text.parse().unwrap();
        for setting in SETTINGS {
            assert!(table.contains_key(setting.name), "{}", setting.name);
        }
        // One of both at a time, and neither is a real ticket.
        table.remove("join");
        table.remove("join_file");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, table.to_string()).unwrap();
        let resolved = resolve(Inputs {
            flags: Layer::new(Source::Flag),
            mount_options: Layer::new(Source::MountOption),
            env: Layer::new(Source::Env),
            config_file: Some(&file),
            mountpoint: None,
            surroundings: &Surroundings {
                root: true,
                ..Surroundings::default()
            },
        })
        .unwrap();
        assert_eq!(resolved.config.routing.routes.len(), 1);
        assert_eq!(resolved.config.routing.groups["hq"], ["birch", "cedar"]);
    }
}
