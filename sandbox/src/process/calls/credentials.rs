//! Users and groups: credentials(7), setresuid(2), setreuid(2), setuid(2), getgroups(2), setgroups(2).
//!
//! A program starts as root and may become whom it likes, as one that gives up its privileges does; having
//! given them up it stays so. The ids are kept and told. No file's permission bits are looked at in any case.

use novum_snapshot::State;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Args, Entry, Outcome};
use crate::process::Process;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_getuid, |process, _| Ok(Outcome::Value(process.credentials.user.real.into()))),
    (libc::SYS_geteuid, |process, _| Ok(Outcome::Value(process.credentials.user.effective.into()))),
    (libc::SYS_getgid, |process, _| Ok(Outcome::Value(process.credentials.group.real.into()))),
    (libc::SYS_getegid, |process, _| Ok(Outcome::Value(process.credentials.group.effective.into()))),
    (libc::SYS_getresuid, |process, args| tell(process, process.credentials.user, args)),
    (libc::SYS_getresgid, |process, args| tell(process, process.credentials.group, args)),
    (libc::SYS_setuid, |process, [id, ..]| {
        change(process, |c| &mut c.user, Ids::all_or_effective(id as u32)?)
    }),
    (libc::SYS_setgid, |process, [id, ..]| {
        change(process, |c| &mut c.group, Ids::all_or_effective(id as u32)?)
    }),
    (libc::SYS_setreuid, |process, [r, e, ..]| change(process, |c| &mut c.user, Change::Two(id(r), id(e)))),
    (libc::SYS_setregid, |process, [r, e, ..]| change(process, |c| &mut c.group, Change::Two(id(r), id(e)))),
    (libc::SYS_setresuid, |process, [r, e, s, ..]| {
        change(process, |c| &mut c.user, Change::Three([id(r), id(e), id(s)]))
    }),
    (libc::SYS_setresgid, |process, [r, e, s, ..]| {
        change(process, |c| &mut c.group, Change::Three([id(r), id(e), id(s)]))
    }),
    // Nothing asks for the file system's ids; the answer is the one before, which follows the effective one.
    (libc::SYS_setfsuid, |process, _| Ok(Outcome::Value(process.credentials.user.effective.into()))),
    (libc::SYS_setfsgid, |process, _| Ok(Outcome::Value(process.credentials.group.effective.into()))),
    (libc::SYS_getgroups, getgroups),
    (libc::SYS_setgroups, setgroups),
];

/// `NGROUPS_MAX`.
const MOST_GROUPS: u64 = 65_536;

/// Real, effective and saved id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

/// Who the program is. All threads agree: C libraries make each of these calls in every thread.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) user: Ids,
    pub(crate) group: Ids,
    pub(crate) groups: Vec<u32>,
}

impl State for Credentials {
    const KIND: &'static str = "process-credentials";
    const VERSION: u32 = 1;
}

/// What is to become of three ids; `None` leaves one.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// `setuid`: all three for root, else the effective one.
    One(u32),
    /// `setreuid`: real and effective.
    Two(Option<u32>, Option<u32>),
    /// `setresuid`.
    Three([Option<u32>; 3]),
}

/// -1 leaves it.
fn id(argument: u64) -> Option<u32> {
    Some(argument as u32).filter(|id| *id != u32::MAX)
}

impl Ids {
    fn all_or_effective(id: u32) -> Result<Change, Errno> {
        if id == u32::MAX { Err(Errno::INVAL) } else { Ok(Change::One(id)) }
    }

    fn holds(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// The ids afterwards.
    fn after(self, change: Change, root: bool) -> Result<Self, Errno> {
        match change {
            Change::One(id) if root => Ok(Self { real: id, effective: id, saved: id }),
            Change::One(id) if id == self.real || id == self.saved => Ok(Self { effective: id, ..self }),
            Change::One(_) => Err(Errno::PERM),
            Change::Two(real, effective) => {
                let may_be_real = |id| root || id == self.real || id == self.effective;
                if !real.is_none_or(may_be_real) || !effective.is_none_or(|id| root || self.holds(id)) {
                    return Err(Errno::PERM);
                }
                let next = effective.unwrap_or(self.effective);
                let follows = real.is_some() || effective.is_some_and(|id| id != self.real);
                let saved = if follows { next } else { self.saved };
                Ok(Self { real: real.unwrap_or(self.real), effective: next, saved })
            }
            Change::Three(ids) => {
                if !root && !ids.into_iter().flatten().all(|id| self.holds(id)) {
                    return Err(Errno::PERM);
                }
                let [real, effective, saved] = ids;
                Ok(Self {
                    real: real.unwrap_or(self.real),
                    effective: effective.unwrap_or(self.effective),
                    saved: saved.unwrap_or(self.saved),
                })
            }
        }
    }
}

fn change(
    process: &mut Process,
    which: fn(&mut Credentials) -> &mut Ids,
    change: Change,
) -> Result<Outcome, Errno> {
    let root = process.credentials.user.effective == 0;
    let ids = which(&mut process.credentials);
    *ids = ids.after(change, root)?;
    Ok(Outcome::ZERO)
}

fn tell(process: &Process, ids: Ids, [real, effective, saved, ..]: Args) -> Result<Outcome, Errno> {
    process.memory.put(real, &ids.real)?;
    process.memory.put(effective, &ids.effective)?;
    process.memory.put(saved, &ids.saved)?;
    Ok(Outcome::ZERO)
}

fn getgroups(process: &mut Process, [size, into, ..]: Args) -> Result<Outcome, Errno> {
    let groups = &process.credentials.groups;
    let size = usize::try_from(size as i32).map_err(|_| Errno::INVAL)?;
    if size != 0 {
        if size < groups.len() {
            return Err(Errno::INVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        process.memory.write(into, &bytes)?;
    }
    Ok(Outcome::Value(groups.len() as u64))
}

fn setgroups(process: &mut Process, [count, from, ..]: Args) -> Result<Outcome, Errno> {
    if process.credentials.user.effective != 0 {
        return Err(Errno::PERM);
    }
    if count > MOST_GROUPS {
        return Err(Errno::INVAL);
    }
    let bytes = process.memory.read_vec(from, count as usize * 4)?;
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut groups: Vec<u32> = words.collect();
    groups.sort_unstable();
    process.credentials.groups = groups;
    Ok(Outcome::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Ids = Ids { real: 5, effective: 5, saved: 5 };

    #[test]
    fn root_becomes_anybody_and_cannot_go_back() {
        let gone = Ids::default().after(Change::One(5), true).unwrap();
        assert_eq!(gone, NOBODY);
        assert_eq!(gone.after(Change::One(0), false), Err(Errno::PERM));
        assert_eq!(gone.after(Change::Three([None, Some(0), None]), false), Err(Errno::PERM));
    }

    #[test]
    fn a_saved_id_leads_back() {
        let away = Ids::default().after(Change::Three([Some(5), Some(5), Some(0)]), true).unwrap();
        assert_eq!(away.after(Change::One(0), false).map(|ids| ids.effective), Ok(0));
    }

    #[test]
    fn setreuid_saves_what_becomes_effective() {
        let ids = Ids::default().after(Change::Two(None, Some(5)), true).unwrap();
        assert_eq!(ids, Ids { real: 0, effective: 5, saved: 5 });
        // setreuid(2): -1 for the real id and the real one for the effective leaves the saved one.
        let back = ids.after(Change::Two(None, Some(0)), false).unwrap();
        assert_eq!(back, Ids { real: 0, effective: 0, saved: 5 });
        assert_eq!(NOBODY.after(Change::Two(Some(6), None), false), Err(Errno::PERM));
    }
}
