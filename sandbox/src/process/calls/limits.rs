//! Limits that a program sets for itself: prlimit(2), getrlimit(2), setrlimit(2).
//!
//! Enforced: open files, the size of files (with `SIGXFSZ`), address space and data. The others are kept and told. A
//! hard limit is never raised: the manifest's limits stand above all of these.

use novum_snapshot::State;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::identity::PID;
use super::{Args, Entry, Outcome};
use crate::kvm::layout::STACK_SIZE;
use crate::process::Process;
use crate::process::memory::AddressSpace;
use crate::process::signal::{Detail, Info, SI_USER, Signal};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_prlimit64, prlimit),
    (libc::SYS_getrlimit, |process, args| prlimit(process, [0, args[0], 0, args[1], 0, 0])),
    (libc::SYS_setrlimit, |process, args| prlimit(process, [0, args[0], args[1], 0, 0, 0])),
];

/// How many there are.
const COUNT: usize = 16;
const NONE: u64 = libc::RLIM_INFINITY;

/// Soft and hard limit of each resource, by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResourceLimits([[u64; 2]; COUNT]);

impl State for ResourceLimits {
    const KIND: &'static str = "process-limits";
    const VERSION: u32 = 1;
}

impl ResourceLimits {
    /// What a program begins with that may have `open_files` files open.
    pub(crate) fn new(open_files: u32) -> Self {
        let mut limits = [[NONE; 2]; COUNT];
        let mut set = |resource: u32, limit| limits[resource as usize] = limit;
        set(libc::RLIMIT_STACK, [STACK_SIZE, NONE]);
        set(libc::RLIMIT_NOFILE, [u64::from(open_files); 2]);
        set(libc::RLIMIT_CORE, [0; 2]);
        set(libc::RLIMIT_NPROC, [4096; 2]);
        set(libc::RLIMIT_SIGPENDING, [4096; 2]);
        set(libc::RLIMIT_MEMLOCK, [8 << 20; 2]);
        set(libc::RLIMIT_MSGQUEUE, [819_200; 2]);
        set(libc::RLIMIT_NICE, [0; 2]);
        set(libc::RLIMIT_RTPRIO, [0; 2]);
        Self(limits)
    }

    /// Soft and hard limit of each resource, as `/proc/self/limits` lists them.
    pub(crate) fn all(&self) -> [[u64; 2]; COUNT] {
        self.0
    }

    /// The soft limit of `resource`.
    fn soft(&self, resource: u32) -> u64 {
        self.0[resource as usize][0]
    }

    fn set(&mut self, resource: usize, [soft, hard]: [u64; 2]) -> Result<(), Errno> {
        if soft > hard {
            return Err(Errno::INVAL);
        }
        if hard > self.0[resource][1] {
            return Err(Errno::PERM);
        }
        self.0[resource] = [soft, hard];
        Ok(())
    }

    /// Whether `bytes` more may be mapped; `data` says that they count as data.
    pub(super) fn allow_mapping(&self, memory: &AddressSpace, bytes: u64, data: bool) -> Result<(), Errno> {
        let (space, most_data) = (self.soft(libc::RLIMIT_AS), self.soft(libc::RLIMIT_DATA));
        if space != NONE {
            let mapped: u64 = memory.vmas().iter().map(|(start, vma)| vma.end - start).sum();
            if mapped.saturating_add(bytes) > space {
                return Err(Errno::NOMEM);
            }
        }
        if data && most_data != NONE && memory.vmas().charged().saturating_add(bytes) > most_data {
            return Err(Errno::NOMEM);
        }
        Ok(())
    }
}

impl Process {
    /// A write or a truncation failed by `errno`: beyond the limit of file sizes there is a signal too.
    pub(super) fn note_file_limit(&mut self, errno: Errno) {
        if errno == Errno::FBIG && self.limits.soft(libc::RLIMIT_FSIZE) != NONE {
            let thread = self.threads.current().id;
            let detail = Detail::Sent { pid: PID as u32 };
            self.post(Info { signal: Signal::XFSZ, code: SI_USER, detail }, Some(thread));
        }
    }
}

fn prlimit(process: &mut Process, [pid, resource, new, old, ..]: Args) -> Result<Outcome, Errno> {
    let resource = resource as u32 as usize;
    if resource >= COUNT {
        return Err(Errno::INVAL);
    }
    let wanted: Option<[u64; 2]> = if new == 0 { None } else { Some(process.memory.get(new)?) };
    if !matches!(pid as u32, 0 | 1) {
        return Err(Errno::SRCH);
    }
    let before = process.limits.all()[resource];
    if let Some(wanted) = wanted {
        process.limits.set(resource, wanted)?;
        let soft = wanted[0];
        match resource as u32 {
            libc::RLIMIT_NOFILE => process.files.set_open_files_limit(soft.min(u64::from(u32::MAX)) as u32),
            libc::RLIMIT_FSIZE => process.files.set_file_limit(soft),
            _ => {}
        }
    }
    process.memory.put_if(old, &before)?;
    Ok(Outcome::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_limit_goes_down_and_not_up() {
        let mut limits = ResourceLimits::new(1024);
        let files = libc::RLIMIT_NOFILE as usize;
        assert_eq!(limits.set(files, [20, 10]), Err(Errno::INVAL));
        assert_eq!(limits.set(files, [10, 2000]), Err(Errno::PERM));
        assert_eq!(limits.set(files, [10, 20]), Ok(()));
        assert_eq!(limits.set(files, [20, 20]), Ok(()));
        assert_eq!(limits.set(files, [20, 21]), Err(Errno::PERM));
        assert_eq!(limits.soft(libc::RLIMIT_NOFILE), 20);
    }
}
