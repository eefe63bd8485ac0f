//! `-o` option strings, and the ways mount(8) calls a helper.
//!
//! Nothing here knows the flags of `meshbox mount`: the caller says which words are flags, and gets them back as if they
//! had been typed. So there is one list of flags and one parser of their values.
//!
//! The syntax is that of mount(8): words separated by commas, a double quote groups, a backslash takes the next byte as it
//! is. Values are bytes, because they may be paths.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What a set of `-o` strings asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Other users than the one who mounts may enter.
    pub allow_other: bool,
    /// Nothing may be changed through the mount.
    pub read_only: bool,
    /// Programs inside the mount may not be run.
    pub no_exec: bool,
    /// Reading does not change access times.
    pub no_atime: bool,
    /// The source that findmnt and mountinfo show.
    pub fs_name: Option<OsString>,
    /// Every other word, a long flag of `meshbox mount` with dashes, and its value.
    pub flags: Vec<(String, Option<OsString>)>,
}

/// Why an option string was refused. Its exit code is that of a usage error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionError {
    /// A word that is neither a flag nor a mount option.
    #[error(
        "unknown mount option `{0}` (`meshbox mount --help` lists the flags; each can stand after -o)"
    )]
    Unknown(String),
    /// A mount option that other file systems have and we have not.
    #[error("mount option `{0}` is not supported; leave it out")]
    Unsupported(String),
    /// `name=value` where the name takes none.
    #[error("mount option `{0}` takes no value; write it without `=`")]
    NoValueAllowed(String),
    /// `name` where a value is needed.
    #[error("mount option `{0}` needs a value: {0}=…")]
    ValueMissing(String),
    /// A double quote without its other half.
    #[error(
        "mount options end inside a double quote; close it, or write \\\" for the character itself"
    )]
    OpenQuote,
}

/// Mount options that say nothing to us: they steer mount(8), systemd and fstab, or are always so (`nosuid`, `nodev`).
/// `dev` and `suid` are added by mount.fuse3 to everything it starts.
const IGNORED: &[&str] = &[
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "rw",
    "defaults",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "async",
    "default_permissions",
    "loud",
    "silent",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
    "dirsync",
    "sync",
];

/// Mount options that mean something to us.
pub(crate) const OPTIONS: &[&str] = &[
    "ro", "noexec", "noatime", "fsname", "nofail", "_netdev", "noauto",
];

/// Known names with a meaning that we refuse rather than ignore.
const UNSUPPORTED: &[&str] = &["fmask", "dmask", "remount", "bind", "rbind", "move"];

impl MountOptions {
    /// Reads all `-o` strings in their order. `is_flag` says whether a name (with dashes) is a long flag of `meshbox mount`;
    /// it wins over a mount option of that name.
    pub(crate) fn parse<S: AsRef<OsStr>>(
        strings: &[S],
        is_flag: &dyn Fn(&str) -> bool,
    ) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        for string in strings {
            for word in split(string.as_ref())? {
                options.take(&word, is_flag)?;
            }
        }
        Ok(options)
    }

    /// As [`MountOptions::parse`], but unknown words are left out: mount(8)'s `-s`.
    pub(crate) fn parse_sloppy<S: AsRef<OsStr>>(
        strings: &[S],
        is_flag: &dyn Fn(&str) -> bool,
    ) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        for string in strings {
            for word in split(string.as_ref())? {
                match options.take(&word, is_flag) {
                    Ok(()) | Err(OptionError::Unknown(_) | OptionError::Unsupported(_)) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(options)
    }

    fn take(&mut self, word: &[u8], is_flag: &dyn Fn(&str) -> bool) -> Result<(), OptionError> {
        let (name, value) = match word.iter().position(|b| *b == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let shown = OsStr::from_bytes(name).to_string_lossy().into_owned();
        let flag = shown.replace('_', "-");
        if is_flag(&flag) {
            // Without a value it can only mean one thing, whoever looks at it.
            self.allow_other |= flag == "allow-other" && value.is_none();
            let value = value.map(|v| OsString::from_vec(v.to_vec()));
            self.flags.push((flag, value));
            return Ok(());
        }
        if name.starts_with(b"x-") || name.starts_with(b"X-") || name == b"comment" {
            return Ok(());
        }
        let switch = match shown.as_str() {
            "allow_other" => &mut self.allow_other,
            "ro" => &mut self.read_only,
            "noexec" => &mut self.no_exec,
            "noatime" | "nodiratime" => &mut self.no_atime,
            "fsname" => {
                let value = value.ok_or(OptionError::ValueMissing(shown))?;
                self.fs_name = Some(OsString::from_vec(value.to_vec()));
                return Ok(());
            }
            "rw" => {
                self.read_only = false;
                return Ok(());
            }
            "exec" => {
                self.no_exec = false;
                return Ok(());
            }
            // mount(8) adds the name of the user who mounts: `user=alice`.
            "user" => return Ok(()),
            name if UNSUPPORTED.contains(&name) => return Err(OptionError::Unsupported(shown)),
            name if IGNORED.contains(&name) && value.is_none() => return Ok(()),
            name if IGNORED.contains(&name) => return Err(OptionError::NoValueAllowed(shown)),
            _ => return Err(OptionError::Unknown(shown)),
        };
        if value.is_some() {
            return Err(OptionError::NoValueAllowed(shown));
        }
        *switch = true;
        Ok(())
    }
}

/// Splits an option string into its words, quotes and escapes undone. Empty words are left out.
fn split(string: &OsStr) -> Result<Vec<Vec<u8>>, OptionError> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut quoted = false;
    let mut bytes = string.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            // A lone backslash at the very end stands for itself.
            b'\\' => word.push(bytes.next().unwrap_or(b'\\')),
            b'"' => quoted = !quoted,
            b',' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(byte),
        }
    }
    if quoted {
        return Err(OptionError::OpenQuote);
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    Ok(words)
}

/// Writes `value` so that it survives as part of one word of an option string, here and in fusermount3.
pub(crate) fn escape(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\' | b'"') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// What the first column of an fstab line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A configuration file.
    Config(PathBuf),
    /// A state directory.
    State(PathBuf),
    /// Only a label, or nothing: the defaults hold.
    Label(OsString),
}

impl Source {
    /// A name without a slash is a label. Of the rest, a file or something called `.toml` is a configuration, and
    /// anything else a state directory, which need not exist yet.
    pub(crate) fn classify(source: &OsStr) -> Source {
        let path = Path::new(source);
        let toml = path.extension().is_some_and(|e| e == "toml");
        if path.is_dir() && source.as_bytes().contains(&b'/') {
            Source::State(path.to_owned())
        } else if toml || (source.as_bytes().contains(&b'/') && path.is_file()) {
            Source::Config(path.to_owned())
        } else if source.as_bytes().contains(&b'/') {
            Source::State(path.to_owned())
        } else {
            Source::Label(source.to_owned())
        }
    }
}

/// A call by mount(8) or mount.fuse3, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HelperCall {
    /// The source exactly as given. It must become the mount's `fs_name` unless an option says otherwise: `mount -a` compares
    /// it with fstab to see what is mounted already.
    pub source: OsString,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// All `-o` strings.
    pub options: Vec<OsString>,
    /// `-f`: do everything but the mount itself.
    pub fake: bool,
    /// `-s`: tolerate unknown options.
    pub sloppy: bool,
    /// `-v`.
    pub verbose: bool,
}

/// Why a helper call could not be understood. Its exit code is that of a usage error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelperError {
    /// Not `SOURCE MOUNTPOINT`.
    #[error(
        "usage: mount.meshbox SOURCE MOUNTPOINT [-nsvf] [-t TYPE] [-o OPTIONS]; SOURCE is a config file, a state directory or `none`"
    )]
    Usage,
    /// A switch that no version of mount(8) passes.
    #[error("unknown switch `{0}`; mount(8) helpers take -n -s -v -f -t TYPE -o OPTIONS")]
    UnknownSwitch(String),
    /// `-t`, `-o` without the word after it.
    #[error("switch `{0}` needs a value")]
    ValueMissing(String),
    /// `mount -N`: the background start could not stay in that namespace.
    #[error(
        "mounting into another mount namespace (-N) is not supported; run `nsenter --mount=… meshbox mount …`"
    )]
    Namespace,
}

/// Recognises the two ways a mount program calls us: by name (`mount.meshbox`, `mount.fuse.meshbox`), or as mount.fuse3 does:
/// `meshbox SOURCE MOUNTPOINT -o OPTIONS`. `None` means an ordinary command line. `is_command` tells the words that are
/// subcommands, which a source must not hide.
pub(crate) fn helper_args(
    argv: &[OsString],
    is_command: &dyn Fn(&str) -> bool,
) -> Option<Result<HelperCall, HelperError>> {
    let (program, args) = argv.split_first()?;
    let name = Path::new(program).file_name()?;
    if name == "mount.meshbox" || name == "mount.fuse.meshbox" {
        return Some(parse_helper(args));
    }
    let first = args.first()?;
    let command = first
        .to_str()
        .is_some_and(|w| w.starts_with('-') || is_command(w));
    // mount.fuse3 always passes -o, with `dev,suid` at least; somebody's typing mistake seldom looks like this.
    let generic = !command && args.iter().any(|a| a == "-o") && {
        let absolute = |at: usize| args.get(at).is_some_and(|a| a.as_bytes().starts_with(b"/"));
        absolute(1) || (absolute(0) && args.get(1).is_some_and(|a| a == "-o"))
    };
    generic.then(|| parse_helper(args))
}

fn parse_helper(args: &[OsString]) -> Result<HelperCall, HelperError> {
    let mut positional = Vec::new();
    let mut call = HelperCall {
        source: OsString::new(),
        mountpoint: PathBuf::new(),
        options: Vec::new(),
        fake: false,
        sloppy: false,
        verbose: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let switches = match arg.as_bytes() {
            [b'-', rest @ ..] if !rest.is_empty() => rest,
            _ => {
                positional.push(arg.clone());
                continue;
            }
        };
        for (at, switch) in switches.iter().enumerate() {
            // The value follows in the same word (`-oro`) or is the next one.
            let mut value = || match &switches[at + 1..] {
                [] => args
                    .next()
                    .cloned()
                    .ok_or_else(|| HelperError::ValueMissing(format!("-{}", char::from(*switch)))),
                rest => Ok(OsStr::from_bytes(rest).to_owned()),
            };
            match switch {
                b'n' => {}
                b's' => call.sloppy = true,
                b'v' => call.verbose = true,
                b'f' => call.fake = true,
                b'r' => call.options.push("ro".into()),
                b'w' => call.options.push("rw".into()),
                b't' => {
                    value()?;
                    break;
                }
                b'o' => {
                    call.options.push(value()?);
                    break;
                }
                b'N' => return Err(HelperError::Namespace),
                _ => {
                    return Err(HelperError::UnknownSwitch(
                        arg.to_string_lossy().into_owned(),
                    ));
                }
            }
        }
    }
    match <[OsString; 2]>::try_from(positional) {
        Ok([source, mountpoint]) => {
            call.source = source;
            call.mountpoint = mountpoint.into();
        }
        // mount.fuse3 leaves an empty source out.
        Err(mut rest) if rest.len() == 1 => call.mountpoint = rest.remove(0).into(),
        Err(_) => return Err(HelperError::Usage),
    }
    if call.mountpoint.as_os_str().is_empty() {
        return Err(HelperError::Usage);
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLAGS: &[&str] = &["state", "name", "no-mdns", "listen", "join-file"];

    fn parse(text: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse(&[text], &|name| FLAGS.contains(&name))
    }

    fn flag(name: &str, value: Option<&str>) -> (String, Option<OsString>) {
        (name.to_owned(), value.map(OsString::from))
    }

    #[test]
    fn flags_come_back_in_order_with_dashes() {
        let options =
            parse("rw,state=/var/lib/m,no_mdns,listen=[::]:1,listen=a=b,join-file=/k,allow_other")
                .unwrap();
        assert!(options.allow_other);
        assert_eq!(
            options.flags,
            [
                flag("state", Some("/var/lib/m")),
                flag("no-mdns", None),
                flag("listen", Some("[::]:1")),
                flag("listen", Some("a=b")),
                flag("join-file", Some("/k")),
            ]
        );
    }

    /// What mount(8) 2.38, mount.fuse3 and fstab lines really contain.
    #[test]
    fn usual_mount_options_are_ignored_or_honoured() {
        let text = "rw,_netdev,nofail,dev,suid,user=alice,users,noauto,x-systemd.requires=a.service,x-gvfs-hide,comment=hi,defaults";
        assert_eq!(parse(text).unwrap(), MountOptions::default());
        let options = parse("ro,noexec,noatime,fsname=a\\,b").unwrap();
        assert!(options.read_only && options.no_exec && options.no_atime);
        assert_eq!(options.fs_name.unwrap(), "a,b");
        assert!(
            !parse("ro,rw,noexec,exec").unwrap().read_only,
            "the last one wins"
        );
    }

    #[test]
    fn allow_other_counts_also_where_it_is_a_flag() {
        let flag = |n: &str| n == "allow-other";
        let options = MountOptions::parse(&["allow_other"], &flag).unwrap();
        assert!(options.allow_other && options.flags.len() == 1);
        assert!(
            !MountOptions::parse(&["allow_other=false"], &flag)
                .unwrap()
                .allow_other
        );
    }

    #[test]
    fn a_typing_mistake_is_an_error_that_names_it() {
        assert_eq!(
            parse("rw,alow_other"),
            Err(OptionError::Unknown("alow_other".into()))
        );
        assert_eq!(
            parse("fmask=022"),
            Err(OptionError::Unsupported("fmask".into()))
        );
        assert_eq!(
            parse("allow_other=1"),
            Err(OptionError::NoValueAllowed("allow_other".into()))
        );
        assert_eq!(
            parse("nofail=1"),
            Err(OptionError::NoValueAllowed("nofail".into()))
        );
        assert_eq!(
            parse("fsname"),
            Err(OptionError::ValueMissing("fsname".into()))
        );
        assert_eq!(parse("name=\"x"), Err(OptionError::OpenQuote));
        let sloppy = MountOptions::parse_sloppy(&["alow_other,name=x"], &|n| n == "name").unwrap();
        assert_eq!(sloppy.flags, [flag("name", Some("x"))]);
    }

    #[test]
    fn quotes_and_backslashes_protect_commas() {
        assert_eq!(parse("state=\"/a,b\",name=c").unwrap().flags.len(), 2);
        assert_eq!(
            parse("state=/a\\,b\\\\c").unwrap().flags,
            [flag("state", Some("/a,b\\c"))]
        );
        assert_eq!(
            parse("name=a\\").unwrap().flags,
            [flag("name", Some("a\\"))]
        );
        assert_eq!(parse(",,").unwrap(), MountOptions::default());
    }

    fn argv(line: &str) -> Vec<OsString> {
        line.split(' ')
            .map(|w| if w == "''" { OsString::new() } else { w.into() })
            .collect()
    }

    fn helper(line: &str) -> Option<Result<HelperCall, HelperError>> {
        helper_args(&argv(line), &|w| ["mount", "status"].contains(&w))
    }

    #[test]
    fn helper_calls_are_recognised_by_name() {
        for name in ["/sbin/mount.meshbox", "mount.fuse.meshbox"] {
            let call = helper(&format!(
                "{name} /etc/m.toml /srv/x -nsv -t meshbox -o rw,_netdev -o name=a"
            ))
            .unwrap()
            .unwrap();
            assert_eq!(call.source, "/etc/m.toml");
            assert_eq!(call.mountpoint, Path::new("/srv/x"));
            assert_eq!(call.options, ["rw,_netdev", "name=a"]);
            assert!(call.sloppy && call.verbose && !call.fake);
        }
        assert_eq!(helper("mount.meshbox a b c"), Some(Err(HelperError::Usage)));
        assert_eq!(helper("mount.meshbox"), Some(Err(HelperError::Usage)));
        assert_eq!(
            helper("mount.meshbox a /b -o"),
            Some(Err(HelperError::ValueMissing("-o".into())))
        );
        assert_eq!(
            helper("mount.meshbox a /b -x"),
            Some(Err(HelperError::UnknownSwitch("-x".into())))
        );
        assert_eq!(
            helper("mount.meshbox a /b -N /proc/1/ns/mnt"),
            Some(Err(HelperError::Namespace))
        );
        assert_eq!(
            helper("mount.meshbox a /b -oro").unwrap().unwrap().options,
            ["ro"]
        );
    }

    #[test]
    fn the_call_of_mount_fuse3_is_recognised_and_commands_are_not() {
        let call = helper("meshbox node0 /mnt/mesh -o rw,dev,suid")
            .unwrap()
            .unwrap();
        assert_eq!(
            (call.source, call.mountpoint),
            ("node0".into(), "/mnt/mesh".into())
        );
        assert_eq!(
            helper("meshbox /mnt/mesh -o dev,suid")
                .unwrap()
                .unwrap()
                .source,
            ""
        );
        for line in [
            "meshbox",
            "meshbox mount /mnt -o allow_other",
            "meshbox status /mnt",
            "meshbox statsu /mnt",
            "meshbox --help",
            "meshbox -o /mnt",
        ] {
            assert_eq!(helper(line), None, "{line}");
        }
    }

    #[test]
    fn sources_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("conf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            Source::classify(file.as_os_str()),
            Source::Config(file.clone())
        );
        assert_eq!(
            Source::classify(dir.path().as_os_str()),
            Source::State(dir.path().into())
        );
        assert_eq!(
            Source::classify("/no/such/site.toml".as_ref()),
            Source::Config("/no/such/site.toml".into())
        );
        assert_eq!(
            Source::classify("/no/such".as_ref()),
            Source::State("/no/such".into())
        );
        assert_eq!(
            Source::classify("site.toml".as_ref()),
            Source::Config("site.toml".into())
        );
        for label in ["none", "", "node0"] {
            assert_eq!(
                Source::classify(label.as_ref()),
                Source::Label(label.into())
            );
        }
    }

    proptest! {
        #[test]
        fn any_words_joined_with_escapes_split_into_themselves(
            words in proptest::collection::vec(proptest::collection::vec(1u8..=255, 1..12), 0..8)
        ) {
            let joined = words
                .iter()
                .map(|w| escape(OsStr::from_bytes(w)).into_vec())
                .collect::<Vec<_>>()
                .join(&b',');
            prop_assert_eq!(split(OsStr::from_bytes(&joined)).unwrap(), words);
        }

        #[test]
        fn no_option_string_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(MountOptions::parse(&[OsStr::from_bytes(&bytes)], &|_| false));
        }
    }
}
