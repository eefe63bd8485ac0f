//! Modes that would lock the daemon out of its own files.
//!
//! A daemon of a plain user needs its user's permission to read what it seals and to list directories. It keeps that on
//! the backing file, and notes the bits that the user did not give in an attribute beside it; what is shown, and what the
//! kernel decides by, is the mode without them. Root needs no permission, so nothing of this happens.
//!
//! # Crash behaviour
//! The note is written before the mode is taken away. A note without its mode takes bits from the user that it may give
//! itself again.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, Stat, XattrFlags, fchmod, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use super::Fs;
use super::attr::kind_of;
use super::beneath::beneath;
use super::error::FsError;
use super::kind::Kind;
use super::names::Target;
use super::node::{Area, NodeId};

/// What an owner's daemon must keep to be able to seal a file and to list a directory.
const KEEP_FILE: u32 = 0o400;
const KEEP_DIRECTORY: u32 = 0o500;

/// What setting an attribute needs: kept while it is set.
const TO_NOTE: u32 = 0o600;

/// How a file or directory is opened for that.
const TO_LOOK: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);

/// Where the bits are noted, in octal digits; never shown, as everything of this prefix.
const NOTE: &str = "user.meshbox.kept";

impl Fs {
    /// The mode to give the backing file so that the daemon is not locked out.
    pub(crate) fn kept_mode(&self, mode: u32, directory: bool) -> u32 {
        match (self.owner.0, directory) {
            (0, _) => mode,
            (_, true) => mode | KEEP_DIRECTORY,
            (_, false) => mode | KEEP_FILE,
        }
    }

    /// Gives a file or directory the mode that the user asked for, as far as the user can see.
    pub(crate) fn set_mode(
        &self,
        target: &Target<'_>,
        mode: u32,
        directory: bool,
    ) -> Result<(), FsError> {
        let kept = self.kept_mode(mode, directory);
        if self.owner.0 == 0 {
            return Ok(target.chmod(mode)?);
        }
        let opened;
        let fd = match target {
            Target::File(file) => file.as_fd(),
            Target::Name(at) => {
                opened = at.open(TO_LOOK)?;
                opened.as_fd()
            }
        };
        let missing = kept & !mode;
        if missing == 0 && noted(fd) == 0 {
            return Ok(target.chmod(mode)?);
        }
        fchmod(fd, Mode::from_raw_mode(kept | TO_NOTE))?;
        let noted = if missing == 0 {
            fremovexattr(fd, NOTE)
        } else {
            let bits = format!("{missing:o}");
            fsetxattr(fd, NOTE, bits.as_bytes(), XattrFlags::empty())
        };
        fchmod(fd, Mode::from_raw_mode(kept))?;
        match noted {
            // Without attributes the mode is shown as it is kept.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Bits of the backing file's mode that the user did not give.
    pub(crate) fn bits_not_given(&self, id: NodeId, stat: &Stat) -> u32 {
        if self.owner.0 == 0 {
            return 0;
        }
        let known = {
            let nodes = self.nodes.lock();
            nodes
                .backing(id)
                .map(|backing| (backing.area, nodes.place(id)))
        };
        match (kind_of(stat), known) {
            (Some(Kind::File | Kind::Directory), Ok((Area::Outbox, Ok(place)))) => {
                beneath(&self.outbox, &place, TO_LOOK).map_or(0, |fd| noted(fd.as_fd()))
            }
            (Some(Kind::File), Ok((Area::Outbox, Err(_nameless)))) => {
                let open = self.nodes.lock().any_open(id);
                open.map_or(0, |open| noted(open.file.as_fd()))
            }
            (_, Ok((Area::Outbox | Area::Inbox, _)) | Err(_)) => 0,
        }
    }
}

fn noted(fd: impl AsFd) -> u32 {
    let mut value = [0_u8; 8];
    let len = fgetxattr(fd, NOTE, &mut value[..]).unwrap_or(0);
    let text = std::str::from_utf8(&value[..len]).unwrap_or_default();
    u32::from_str_radix(text, 8).unwrap_or(0) & KEEP_DIRECTORY
}
