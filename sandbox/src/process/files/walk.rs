//! The path walk, over the private tree and the shares, as path_resolution(7) describes it.
//!
//! Every symbolic link is read and followed here, in the sandbox's own name space, wherever it is stored: the
//! host never follows one for a tenant.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::place::Target;
use super::tree::NodeId;
use super::{Files, Place};

/// Symbolic links that one walk follows (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Longest path, with its NUL byte (`PATH_MAX`).
pub(crate) const PATH_MAX: usize = 4096;

/// What happens at the last name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A link there is followed.
    Follow,
    /// A link there is the result, unless a slash comes after it.
    Stay,
    /// The name itself is wanted, for a call that makes or removes it: a link there is the result, a slash after it
    /// is left to the caller.
    Name,
    /// As `Follow`, for `O_CREAT`: a name with a slash after it is `EISDIR`.
    Create,
    /// As `Stay`, for `O_CREAT` with `O_EXCL` or `O_NOFOLLOW`: the same.
    CreateStay,
}

/// How the path ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// In a name.
    Name(Vec<u8>),
    /// In `.`.
    Dot,
    /// In `..`.
    DotDot,
    /// It was `/`, or a link to the thing itself.
    Root,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(crate) struct Walked {
    /// The directory that holds the last name.
    pub(crate) dir: Place,
    pub(crate) last: Last,
    /// Slashes came after it.
    pub(crate) slash: bool,
    /// What is there.
    pub(crate) found: Option<Place>,
}

impl Walked {
    /// What is there, or `ENOENT`.
    pub(crate) fn found(self) -> Result<Place, Errno> {
        self.found.ok_or(Errno::NOENT)
    }
}

/// Restrictions of `openat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) no_links: bool,
    pub(crate) no_magic: bool,
    pub(crate) no_crossing: bool,
    pub(crate) beneath: bool,
    pub(crate) in_root: bool,
}

impl Files {
    /// Walks `path` from `start` (which matters only if it is relative).
    pub(crate) fn walk(&mut self, start: &Place, path: &[u8], end: End) -> Result<Walked, Errno> {
        self.walk_within(start, path, end, Limits::default())
    }

    /// [`Files::walk`] with restrictions.
    pub(crate) fn walk_within(
        &mut self,
        start: &Place,
        path: &[u8],
        end: End,
        limits: Limits,
    ) -> Result<Walked, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let root = if limits.in_root { start.clone() } else { Place::Tree(NodeId::ROOT) };
        let mut walk = Walk { files: self, root, start, limits, links: 0, at: start.clone() };
        walk.run(path.to_vec(), end)
    }
}

struct Walk<'a> {
    files: &'a mut Files,
    root: Place,
    start: &'a Place,
    limits: Limits,
    links: u32,
    at: Place,
}

impl Walk<'_> {
    fn run(&mut self, mut rest: Vec<u8>, end: End) -> Result<Walked, Errno> {
        self.enter_root_if_absolute(&rest)?;
        let mut last = Last::Root;
        let mut dir = self.at.clone();
        loop {
            let Some((name, after)) = next_name(&rest) else {
                let slash = rest.ends_with(b"/");
                return Ok(Walked { dir, last, slash, found: Some(self.at.clone()) });
            };
            self.require_dir()?;
            dir = self.at.clone();
            let ends = next_name(after).is_none();
            let slash = !after.is_empty();
            match name {
                b"." => last = Last::Dot,
                b".." => {
                    self.up()?;
                    last = Last::DotDot;
                }
                _ if ends && slash && matches!(end, End::Create | End::CreateStay) => {
                    return Err(Errno::ISDIR);
                }
                _ => {
                    let Some(child) = self.files.lookup(&dir, name)? else {
                        if !ends {
                            return Err(Errno::NOENT);
                        }
                        return Ok(Walked { dir, last: Last::Name(name.to_vec()), slash, found: None });
                    };
                    let follow =
                        !ends || matches!(end, End::Follow | End::Create) || (slash && end == End::Stay);
                    if follow && let Some(target) = self.link(&child)? {
                        last = Last::Root;
                        match target {
                            Target::Jump(place) => self.at = place,
                            Target::Text(text) => {
                                rest = [&text, after].concat();
                                self.enter_root_if_absolute(&rest)?;
                                continue;
                            }
                        }
                    } else {
                        self.step(child)?;
                        last = Last::Name(name.to_vec());
                    }
                }
            }
            if ends {
                if slash && end != End::Name {
                    self.require_dir()?;
                }
                return Ok(Walked { dir, last, slash, found: Some(self.at.clone()) });
            }
            rest = after.to_vec();
        }
    }

    fn enter_root_if_absolute(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.starts_with(b"/") {
            if self.limits.beneath {
                return Err(Errno::XDEV);
            }
            self.at = self.root.clone();
        }
        Ok(())
    }

    fn require_dir(&self) -> Result<(), Errno> {
        match self.files.kind(&self.at)? {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn step(&mut self, child: Place) -> Result<(), Errno> {
        if self.limits.no_crossing && self.files.is_mount_root(&child) {
            return Err(Errno::XDEV);
        }
        self.at = child;
        Ok(())
    }

    fn up(&mut self) -> Result<(), Errno> {
        if self.at == self.root && !self.limits.beneath {
            return Ok(());
        }
        if self.limits.beneath && self.at == *self.start {
            return Err(Errno::XDEV);
        }
        if self.limits.no_crossing && self.files.is_mount_root(&self.at) {
            return Err(Errno::XDEV);
        }
        self.at = self.files.parent(&self.at);
        Ok(())
    }

    /// The target of `place` if it is a link that may be followed.
    fn link(&mut self, place: &Place) -> Result<Option<Target>, Errno> {
        if self.files.kind(place)? != FileType::Symlink {
            return Ok(None);
        }
        let Some(target) = self.files.target(place)? else { return Ok(None) };
        self.links += 1;
        if self.links > MAX_LINKS || self.limits.no_links {
            return Err(Errno::LOOP);
        }
        match &target {
            Target::Jump(_) if self.limits.no_magic => return Err(Errno::LOOP),
            Target::Jump(_) if self.limits.beneath || self.limits.in_root => return Err(Errno::XDEV),
            Target::Text(text) if text.is_empty() => return Err(Errno::NOENT),
            _ => {}
        }
        Ok(Some(target))
    }
}

/// The first name of `path` and what comes after it; `None` where there are only slashes.
fn next_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|b| *b != b'/')?;
    let path = &path[start..];
    let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
    Some((&path[..end], &path[end..]))
}
