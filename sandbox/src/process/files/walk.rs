//! The path walk, over the private tree and the shares, as path_resolution(7) describes it.
//!
//! Every symbolic link is read and followed here, in the sandbox's own name space, wherever it is stored: the
//! host never follows one for a tenant.
//!
//! Inside a share the walk first asks the host for all the names that are left at once ([`Walk::leap`]): one `openat2`
//! that fails at the first link. Only where there is one, or where the answer is no and the caller must know which
//! name it was, does the walk go name by name. Nothing is remembered from one walk to the next, because the host and
//! other sandboxes may change a share at any time.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::place::{Target, parent_path};
use super::tree::{NodeId, join};
use super::{Files, Place};
use crate::share::{Attr, NAME_MAX};

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
    /// What the host said about it during the walk, where it lies in a share.
    pub(crate) seen: Option<Attr>,
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
        let at = start.clone();
        let mut walk = Walk { files: self, root, start, limits, links: 0, at, seen: None, may_leap: true };
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
    /// What the host said about `at`.
    seen: Option<Attr>,
    /// Whether a leap from here may come to something.
    may_leap: bool,
}

/// What came of a leap.
enum Leap {
    /// The walk ends here.
    End(Box<Walked>),
    /// The last name is a link that leads on.
    Link(Vec<u8>),
    /// The names must be walked one by one.
    Walk,
}

impl Walk<'_> {
    fn run(&mut self, mut rest: Vec<u8>, end: End) -> Result<Walked, Errno> {
        self.enter_root_if_absolute(&rest)?;
        let mut last = Last::Root;
        let mut dir = self.at.clone();
        loop {
            let Some((name, after)) = next_name(&rest) else {
                let slash = rest.ends_with(b"/");
                return Ok(self.ended(dir, last, slash));
            };
            match self.leap(&rest, end)? {
                Leap::End(walked) => return Ok(*walked),
                Leap::Link(text) => {
                    dir = self.at.clone();
                    last = Last::Root;
                    rest = text;
                    self.enter_root_if_absolute(&rest)?;
                    continue;
                }
                Leap::Walk => {}
            }
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
                    let Some((child, seen)) = self.files.lookup_seen(&dir, name)? else {
                        if !ends {
                            return Err(Errno::NOENT);
                        }
                        let last = Last::Name(name.to_vec());
                        return Ok(Walked { dir, last, slash, found: None, seen: None });
                    };
                    let follow = !ends || follows(end, slash);
                    if follow && let Some(target) = self.link(&child, seen.as_ref())? {
                        last = Last::Root;
                        self.may_leap = true;
                        match target {
                            Target::Jump(place) => self.move_to(place, None),
                            Target::Text(text) => {
                                rest = [&text, after].concat();
                                self.enter_root_if_absolute(&rest)?;
                                continue;
                            }
                        }
                    } else {
                        self.step(child, seen)?;
                        last = Last::Name(name.to_vec());
                    }
                }
            }
            if ends {
                if slash && end != End::Name {
                    self.require_dir()?;
                }
                return Ok(self.ended(dir, last, slash));
            }
            rest = after.to_vec();
        }
    }

    fn ended(&mut self, dir: Place, last: Last, slash: bool) -> Walked {
        Walked { dir, last, slash, found: Some(self.at.clone()), seen: self.seen.take() }
    }

    fn move_to(&mut self, place: Place, seen: Option<Attr>) {
        // From outside of a share into it: what failed was another leap.
        self.may_leap |= !matches!(self.at, Place::Shared(..));
        (self.at, self.seen) = (place, seen);
    }

    /// Asks the host for all of `rest` at once, beneath the directory of a share where the walk stands. The answer is
    /// that of a walk name by name: the host goes through plain directories of the same file system only, and fails
    /// at the first name that is missing, a link, or no directory.
    fn leap(&mut self, rest: &[u8], end: End) -> Result<Leap, Errno> {
        let Place::Shared(n, path) = &self.at else { return Ok(Leap::Walk) };
        let n = *n;
        let rest = &rest[rest.iter().position(|b| *b != b'/').unwrap_or(0)..];
        if !std::mem::take(&mut self.may_leap) || !is_plain(rest) || self.files.holds_mounts(n) {
            return Ok(Leap::Walk);
        }
        let whole = join(path, rest);
        let seen = match self.files.look(n, &whole) {
            Ok(seen) => seen,
            Err(Errno::NOENT) if matches!(end, End::Follow | End::Stay) => return Err(Errno::NOENT),
            Err(_) => return Ok(Leap::Walk),
        };
        let name = whole.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
        let dir = Place::Shared(n, parent_path(&whole).into());
        let place = Place::Shared(n, whole.into());
        if follows(end, false)
            && let Some(target) = self.link(&place, Some(&seen))?
        {
            // Relative to the directory that holds the link.
            self.move_to(dir, None);
            self.may_leap = true;
            return Ok(match target {
                Target::Text(text) => Leap::Link(text),
                Target::Jump(_) => Leap::Walk,
            });
        }
        self.move_to(place, Some(seen));
        Ok(Leap::End(Box::new(self.ended(dir, Last::Name(name), false))))
    }

    fn enter_root_if_absolute(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.starts_with(b"/") {
            if self.limits.beneath {
                return Err(Errno::XDEV);
            }
            self.move_to(self.root.clone(), None);
        }
        Ok(())
    }

    fn require_dir(&self) -> Result<(), Errno> {
        match self.files.kind_seen(&self.at, self.seen.as_ref())? {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn step(&mut self, child: Place, seen: Option<Attr>) -> Result<(), Errno> {
        if self.limits.no_crossing && self.files.is_mount_root(&child) {
            return Err(Errno::XDEV);
        }
        self.move_to(child, seen);
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
        self.move_to(self.files.parent(&self.at), None);
        Ok(())
    }

    /// The target of `place` if it is a link that may be followed.
    fn link(&mut self, place: &Place, seen: Option<&Attr>) -> Result<Option<Target>, Errno> {
        if self.files.kind_seen(place, seen)? != FileType::Symlink {
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

/// Whether a link at the end is followed.
fn follows(end: End, slash: bool) -> bool {
    matches!(end, End::Follow | End::Create) || (slash && end == End::Stay)
}

/// Whether `path` is made of names alone: no dots, nothing after the last, none too long.
fn is_plain(path: &[u8]) -> bool {
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_MAX;
    path.split(|b| *b == b'/').all(plain)
}

/// The first name of `path` and what comes after it; `None` where there are only slashes.
fn next_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|b| *b != b'/')?;
    let path = &path[start..];
    let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
    Some((&path[..end], &path[end..]))
}
