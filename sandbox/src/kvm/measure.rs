//! What the KVM of this machine can do, by measurement: no vendor's name and no list of features says it.
//!
//! A program of ours ([`trial`](super::trial)) makes calls and counts, in ring 3 and in ring 0. A software KVM shows
//! itself twice: `syscall` may stay in ring 3, and ring 0, where a guest's kernel lives, is interpreted.

use std::time::{Duration, Instant};

use super::entry;
use super::sys::{KickSlot, KickTimer};
use super::trial::{self, CALLS, COUNT, COUNT_INSTRUCTIONS};
use super::vcpu::{Exit, Vcpu};
use super::vm::{self, Host, VmError};

/// What was measured. Times are the best of a few rounds, so that a busy machine looks no worse than it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Whether `syscall` raises the privilege level, as on hardware.
    pub syscall_raises_privilege: bool,
    /// A system call of a program in ring 3: out of the VM and back into it.
    pub exit: Duration,
    /// Creating a VM with one vCPU and 2 MiB of memory, and running its first instruction.
    pub create: Duration,
    /// Nanoseconds for an instruction of a counting loop in ring 3, where programs run.
    pub ring3_ns: f64,
    /// The same in ring 0, where a guest's kernel runs.
    pub ring0_ns: f64,
}

impl Measured {
    /// How many times slower ring 0 is before it must be interpreted. Hardware makes no difference at all.
    const INTERPRETED: f64 = 20.0;

    /// Whether a guest's kernel would be interpreted, instruction by instruction.
    #[must_use]
    pub fn interprets_ring0(&self) -> bool {
        self.ring0_ns > self.ring3_ns * Self::INTERPRETED
    }

    /// Whether this is KVM on hardware virtualization, or something that cannot be told from it.
    #[must_use]
    pub fn is_hardware(&self) -> bool {
        self.syscall_raises_privilege && !self.interprets_ring0()
    }
}

/// After this much the rounds that are not done yet are given up.
const LIMIT: Duration = Duration::from_millis(400);
/// How often a signal looks whether the limit has passed.
const TICK: Duration = Duration::from_millis(20);
/// Rounds of which the best counts.
const ROUNDS: usize = 3;
/// Calls of one round.
const ROUND_CALLS: u32 = 50;
/// A count lasts at least this long, so that leaving the VM does not matter.
const LONG_ENOUGH: Duration = Duration::from_micros(500);
/// Turns of the first, shortest count.
const FIRST_TURNS: u64 = 500;

/// Measures, on a thread of its own: 10 ms on most machines, half a second at the very most.
///
/// # Errors
/// A text that says why no VM runs here, or what went wrong in it.
pub fn measure() -> Result<Measured, String> {
    let host = vm::host().map_err(|error| error.to_string())?;
    let thread = std::thread::Builder::new().name("kvm-measure".into()).spawn(|| measure_here(host));
    let thread = thread.map_err(|error| format!("no thread to measure on: {error}"))?;
    let measured = thread.join().map_err(|_| "the measurement panicked".to_owned())?;
    measured.map_err(|error| error.to_string())
}

fn measure_here(host: &Host) -> Result<Measured, VmError> {
    let mut create = Duration::MAX;
    for _ in 1..ROUNDS {
        create = create.min(trial_vm(host, |_, _| Ok(()))?.0);
    }
    let (last, mut measured) = trial_vm(host, |vcpu, limit| {
        Ok(Measured {
            syscall_raises_privilege: host.ring_changes(),
            exit: exit_cost(vcpu, limit)?,
            create: Duration::ZERO,
            ring3_ns: instruction_cost(vcpu, limit, 3)?,
            ring0_ns: instruction_cost(vcpu, limit, 0)?,
        })
    })?;
    measured.create = create.min(last);
    Ok(measured)
}

/// How long a VM took to its first call, and what `work` made of it.
fn trial_vm<T>(
    host: &Host,
    work: impl FnOnce(&mut Vcpu, &Limit) -> Result<T, VmError>,
) -> Result<(Duration, T), VmError> {
    let begin = Instant::now();
    let vm = trial::vm(host.kvm())?;
    let mut vcpu = vm.vcpu_with(host.cpuid(), host.ring_changes())?;
    vcpu.enter(entry::registers(CALLS, 0));
    trial::call(&mut vcpu)?;
    let took = begin.elapsed();
    let limit = Limit::new(&mut vcpu)?;
    let result = work(&mut vcpu, &limit);
    drop(limit);
    Ok((took, result?))
}

/// Makes a run of the vCPU on this thread end in time.
struct Limit {
    kick: KickSlot,
    _timer: KickTimer,
    until: Instant,
}

impl Limit {
    fn new(vcpu: &mut Vcpu) -> Result<Self, VmError> {
        let failed = |error| VmError::Unavailable(format!("no timer: {error}"));
        let kick = vcpu.kick_slot();
        kick.attach();
        let timer = KickTimer::new().map_err(failed)?;
        timer.arm(TICK, TICK).map_err(failed)?;
        Ok(Self { kick, _timer: timer, until: Instant::now() + LIMIT })
    }

    /// Runs until the vCPU leaves by itself or the limit has passed.
    fn run(&self, vcpu: &mut Vcpu) -> Exit {
        loop {
            let exit = vcpu.run();
            if exit != Exit::Interrupted || Instant::now() >= self.until {
                return exit;
            }
            self.kick.clear();
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        KickSlot::detach();
    }
}

/// A round trip of a call.
fn exit_cost(vcpu: &mut Vcpu, limit: &Limit) -> Result<Duration, VmError> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..ROUND_CALLS {
            vcpu.resume_call(0);
            trial::expect_call(limit.run(vcpu))?;
        }
        best = best.min(begin.elapsed() / ROUND_CALLS);
    }
    Ok(best)
}

/// Nanoseconds of one instruction in `ring`: longer and longer counts, until leaving the VM does not matter.
fn instruction_cost(vcpu: &mut Vcpu, limit: &Limit, ring: u8) -> Result<f64, VmError> {
    let mut turns = FIRST_TURNS;
    let (idle, _) = count(vcpu, limit, ring, 1)?;
    loop {
        let (took, done) = count(vcpu, limit, ring, turns)?;
        let net = took.saturating_sub(idle);
        if net >= LONG_ENOUGH || done < turns || Instant::now() >= limit.until {
            return Ok(net.as_secs_f64() * 1e9 / (done.max(1) * COUNT_INSTRUCTIONS) as f64);
        }
        turns *= 8;
    }
}

/// Counts `turns` down; how long that took, and how many were done (all of them unless the limit passed).
fn count(vcpu: &mut Vcpu, limit: &Limit, ring: u8, turns: u64) -> Result<(Duration, u64), VmError> {
    let mut regs = entry::registers(COUNT, 0);
    regs.rcx = turns;
    vcpu.enter_ring(ring, regs);
    let begin = Instant::now();
    match limit.run(vcpu) {
        // The port is nobody's: in ring 3 the attempt is a fault, in ring 0 an exit.
        Exit::Privileged | Exit::Fault(_) => Ok((begin.elapsed(), turns)),
        Exit::Interrupted => Ok((begin.elapsed(), turns - vcpu.regs().rcx.min(turns))),
        other => Err(VmError::Unavailable(format!("counting in ring {ring} ends with {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_possible_and_agrees_with_itself() {
        let measured = match measure() {
            Ok(measured) => measured,
            Err(reason) => {
                assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none(), "{reason}");
                eprintln!("SKIPPED: kvm::measure: {reason}");
                return;
            }
        };
        assert!(measured.exit > Duration::ZERO && measured.create > measured.exit, "{measured:?}");
        assert!(measured.ring3_ns > 0.0 && measured.ring0_ns > 0.0, "{measured:?}");
        assert_eq!(measured.syscall_raises_privilege, vm::host().unwrap().ring_changes());
        if std::env::var_os("NOVUM_RIG").is_some() {
            assert!(measured.is_hardware(), "the rig is hardware-style: {measured:?}");
        }
    }

    #[test]
    fn a_software_kvm_is_known_by_either_sign() {
        let hardware = Measured {
            syscall_raises_privilege: true,
            exit: Duration::from_micros(1),
            create: Duration::from_micros(300),
            ring3_ns: 0.3,
            ring0_ns: 0.3,
        };
        assert!(hardware.is_hardware());
        assert!(!Measured { syscall_raises_privilege: false, ..hardware }.is_hardware());
        assert!(!Measured { ring0_ns: 550.0, ..hardware }.is_hardware());
    }

    #[test]
    fn a_loop_in_the_vm_ends_at_the_limit() {
        let Ok(host) = vm::host() else {
            assert!(std::env::var_os("NOVUM_REQUIRE_KVM").is_none());
            eprintln!("SKIPPED: kvm::measure: /dev/kvm does not open");
            return;
        };
        let looping = trial_vm(host, |vcpu, limit| count(vcpu, limit, 3, u64::MAX));
        let (_, (took, done)) = looping.unwrap();
        assert!(took >= LIMIT - TICK && done > 0 && done < u64::MAX);
    }
}
