//! What a program asks about itself and its machine, and how it ends.

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::{Args, Entry, Outcome};
use crate::kvm::layout::USER_END;
use crate::process::Process;
use crate::process::thread::Base;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_exit, |_, args| Ok(Outcome::ExitThread(args[0] as i32))),
    (libc::SYS_exit_group, |_, args| Ok(Outcome::Exit(args[0] as i32))),
    (libc::SYS_getpid, |_, _| Ok(Outcome::Value(PID))),
    (libc::SYS_getppid, |_, _| Ok(Outcome::ZERO)),
    (libc::SYS_gettid, |process, _| Ok(Outcome::Value(u64::from(process.threads.current().id)))),
    (libc::SYS_getpgrp, |_, _| Ok(Outcome::Value(PID))),
    (libc::SYS_getpgid, of_self),
    (libc::SYS_getsid, of_self),
    (libc::SYS_capget, capget),
    (libc::SYS_uname, uname),
    (libc::SYS_arch_prctl, arch_prctl),
    (libc::SYS_prctl, prctl),
    (libc::SYS_set_tid_address, set_tid_address),
    (libc::SYS_sysinfo, sysinfo),
    // The machine is not the program's to change, nor is its root directory.
    (libc::SYS_sethostname, |_, _| Err(Errno::PERM)),
    (libc::SYS_setdomainname, |_, _| Err(Errno::PERM)),
    (libc::SYS_chroot, |_, _| Err(Errno::PERM)),
    (libc::SYS_personality, |_, _| Ok(Outcome::ZERO)),
    // Every C library asks and does without: with one CPU there is nothing to gain, and no need to tell the user.
    (libc::SYS_rseq, |_, _| Err(Errno::NOSYS)),
    // libnuma asks and takes this for a kernel without NUMA, which is the truth.
    (libc::SYS_get_mempolicy, |_, _| Err(Errno::NOSYS)),
];

/// The only process there is.
pub(crate) const PID: u64 = 1;

fn of_self(_: &mut Process, [pid, ..]: Args) -> Result<Outcome, Errno> {
    if matches!(pid as u32, 0 | 1) { Ok(Outcome::Value(PID)) } else { Err(Errno::SRCH) }
}

/// No capabilities. The header is the version and the process, the data effective, permitted and inheritable sets, once for version
/// 1, twice after that.
fn capget(process: &mut Process, [header, data, ..]: Args) -> Result<Outcome, Errno> {
    const VERSION_1: u32 = 0x1998_0330;
    const VERSION_2: u32 = 0x2007_1026;
    const VERSION_3: u32 = 0x2008_0522;
    let [version, pid]: [u32; 2] = process.memory.get(header)?;
    let words = match version {
        VERSION_1 => 3,
        VERSION_2 | VERSION_3 => 6,
        _ => {
            process.memory.put(header, &VERSION_3)?;
            return if data == 0 { Ok(Outcome::ZERO) } else { Err(Errno::INVAL) };
        }
    };
    if !matches!(pid, 0 | 1) {
        return Err(Errno::SRCH);
    }
    if data != 0 {
        process.memory.write(data, &[0; 24][..words * 4])?;
    }
    Ok(Outcome::ZERO)
}

/// `struct new_utsname`.
fn uname(process: &mut Process, [address, ..]: Args) -> Result<Outcome, Errno> {
    const FIELD: usize = 65;
    // A release that every program of the last years takes for new enough.
    let fields = ["Linux", "novum", "6.1.0-novum", "#1 SMP novum", "x86_64", "(none)"];
    let mut bytes = [0; 6 * FIELD];
    for (i, text) in fields.iter().enumerate() {
        bytes[i * FIELD..][..text.len()].copy_from_slice(text.as_bytes());
    }
    process.memory.write(address, &bytes)?;
    Ok(Outcome::ZERO)
}

fn arch_prctl(process: &mut Process, [what, address, ..]: Args) -> Result<Outcome, Errno> {
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    match what {
        SET_FS | SET_GS if address >= USER_END => Err(Errno::PERM),
        SET_FS => process.set_base(Base::Fs, address),
        SET_GS => process.set_base(Base::Gs, address),
        GET_FS => process.read_base(Base::Fs, address),
        GET_GS => process.read_base(Base::Gs, address),
        _ => Err(Errno::INVAL),
    }
}

fn prctl(process: &mut Process, [what, a, b, c, d, _]: Args) -> Result<Outcome, Errno> {
    match what as i32 {
        libc::PR_SET_NAME => {
            let mut name = process.memory.cstr(a, 16).or_else(|errno| match errno {
                Errno::NAMETOOLONG => process.memory.read_vec(a, 15),
                other => Err(other),
            })?;
            name.resize(16, 0);
            process.threads.current_mut().name.copy_from_slice(&name);
            Ok(Outcome::ZERO)
        }
        libc::PR_GET_NAME => {
            let name = process.threads.current().name;
            process.memory.write(a, &name)?;
            Ok(Outcome::ZERO)
        }
        libc::PR_GET_DUMPABLE => Ok(Outcome::Value(1)),
        libc::PR_SET_DUMPABLE if a <= 1 => Ok(Outcome::ZERO),
        libc::PR_SET_PDEATHSIG => Ok(Outcome::ZERO),
        libc::PR_GET_NO_NEW_PRIVS => Ok(Outcome::Value(1)),
        libc::PR_SET_NO_NEW_PRIVS if (a, b, c, d) == (1, 0, 0, 0) => Ok(Outcome::ZERO),
        libc::PR_SET_VMA | libc::PR_SET_THP_DISABLE | libc::PR_SET_TIMERSLACK => Ok(Outcome::ZERO),
        libc::PR_CAPBSET_READ => Ok(Outcome::ZERO),
        _ => Err(Errno::INVAL),
    }
}

fn set_tid_address(process: &mut Process, [address, ..]: Args) -> Result<Outcome, Errno> {
    let thread = process.threads.current_mut();
    thread.clear_child_tid = address;
    Ok(Outcome::Value(u64::from(thread.id)))
}

/// `struct sysinfo`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SysInfo {
    uptime: u64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    processes: u16,
    padding: [u8; 6],
    total_high: u64,
    free_high: u64,
    unit: u32,
    tail: u32,
}

fn sysinfo(process: &mut Process, [address, ..]: Args) -> Result<Outcome, Errno> {
    let total = process.memory.limit_bytes();
    let info = SysInfo {
        uptime: process.uptime().as_secs(),
        loads: [0; 3],
        total_ram: total,
        free_ram: total.saturating_sub(process.memory.vmas().charged()),
        shared_ram: 0,
        buffer_ram: 0,
        total_swap: 0,
        free_swap: 0,
        processes: 1,
        padding: [0; 6],
        total_high: 0,
        free_high: 0,
        unit: 1,
        tail: 0,
    };
    process.memory.put(address, &info)?;
    Ok(Outcome::ZERO)
}
