//! A machine at rest: what is saved, and how a machine comes of it.
//!
//! | section | owner | what |
//! |---|---|---|
//! | `machine` | | memory, vCPUs, devices: what a new machine must be made like |
//! | `vm` | | interrupt controllers, KVM's clock, the PIT |
//! | `vcpu` | `vcpu0`, ... | registers ([`vcpu`]) |
//! | `serial` | `com1` | the UART |
//! | `virtio-mmio`, and its own | `virtio0`, ... | each device (`virtio/state.rs`) |
//!
//! The power and reset ports have no state. Memory is the snapshot's image: pages that the guest or the boot has put
//! there. A machine must be paused to be saved, and is paused when it has been made.

mod features;
#[cfg(test)]
pub(super) mod golden;
mod memory;
mod raw;
mod serial;
mod vcpu;
mod vm;
mod working_set;

use std::collections::BTreeSet;

use kvm_ioctls::{VcpuFd, VmFd};
use novum_snapshot::{Digest, Host, Incompatible, SectionError, Snapshot, State, Store, WriteError, Writer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::end::End;
use super::layout::MAX_VCPUS;
use super::virtio::StateError;
use crate::kvm::vm::Host as KvmHost;

pub(super) use memory::{Changes, Changing, private_bytes, restore as restore_memory, write as write_memory};
use vcpu::{Counter, VcpuState};
use vm::VmState;

pub(super) use serial::{OWNER as SERIAL_OWNER, Uart};
pub use working_set::WorkingSet;

/// Why a machine could not be saved, or made from what was saved.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The snapshot could not be written.
    #[error("the snapshot could not be written")]
    Write(#[from] WriteError),
    /// A section could not be read.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// This machine is not like the one it was made on.
    #[error("the snapshot cannot run on this machine")]
    Incompatible(#[from] Incompatible),
    /// A device's state.
    #[error(transparent)]
    Device(#[from] StateError),
    /// KVM refused a part of the state.
    #[error("{doing} {what} failed in KVM")]
    Kvm {
        /// Reading or writing.
        doing: &'static str,
        /// Which part.
        what: &'static str,
        /// Its answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The guest has ended.
    #[error("{0}")]
    Ended(End),
    /// It does not fit.
    #[error("{0}")]
    Refused(String),
    /// The host failed.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl SnapshotError {
    /// For `map_err`: a [`SnapshotError::Host`].
    pub(crate) fn host(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}

/// Most snapshots of which it is remembered that they fit.
const MOST_FIT: usize = 1024;

/// What a new machine must be made like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineState {
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u8,
    pub(super) pit: bool,
    /// Virtio devices.
    pub(super) devices: u8,
}

impl State for MachineState {
    const KIND: &'static str = "machine";
    const VERSION: u32 = 1;
}

impl MachineState {
    /// Of a snapshot whose demands this host meets.
    pub(super) fn take(snapshot: &Snapshot, host: &KvmHost) -> Result<Self, SnapshotError> {
        let state: Self = snapshot.take("")?;
        if state.vcpus == 0 || state.vcpus > MAX_VCPUS {
            return Err(SnapshotError::Refused(format!("a machine cannot have {} vCPUs", state.vcpus)));
        }
        check_host(snapshot, host, state.vcpus)?;
        Ok(state)
    }
}

/// Compares what the snapshot demands with what vCPUs of this host have; each snapshot's once, as there are many words in it.
fn check_host(snapshot: &Snapshot, host: &KvmHost, vcpus: u8) -> Result<(), SnapshotError> {
    static FIT: Mutex<BTreeSet<Digest>> = Mutex::new(BTreeSet::new());
    let digest = snapshot.digest();
    if FIT.lock().contains(&digest) {
        return Ok(());
    }
    let offer = features::host(super::vcpu::cpuid(host.cpuid(), 0, vcpus).as_slice());
    snapshot.require(&offer)?;
    let mut fit = FIT.lock();
    if fit.len() >= MOST_FIT {
        fit.clear();
    }
    fit.insert(digest);
    Ok(())
}

/// A writer of a snapshot: a base, or a diff over `parent`. What it demands is known with its processors.
pub(super) fn writer(store: &Store, parent: Option<&Snapshot>) -> Result<Writer, SnapshotError> {
    let host = Host::new(std::iter::empty::<String>());
    Ok(match parent {
        None => Writer::base(store, host),
        Some(parent) => Writer::diff(store, host, parent),
    }?)
}

/// The owner of a vCPU's section.
fn vcpu_owner(id: usize) -> String {
    format!("vcpu{id}")
}

/// The owner of a device's sections.
pub(super) fn device_owner(index: usize) -> String {
    format!("virtio{index}")
}

/// What goes on by itself in a machine that stands: written when it first runs, it goes on from where the saved one stood,
/// however long ago the machine was made.
pub(super) struct Clocks {
    counters: Vec<Counter>,
    vm: VmState,
}

impl Clocks {
    /// Into a machine that has not run.
    pub(super) fn write<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<(), SnapshotError> {
        for (id, (counter, vcpu)) in self.counters.iter().zip(vcpus).enumerate() {
            counter.write(vcpu, id == 0)?;
        }
        self.vm.write_clock(vm)
    }
}

/// Processors and controllers of a machine whose vCPUs stand and whose devices are paused.
pub(super) struct Processors {
    vcpus: Vec<VcpuState>,
    vm: VmState,
}

impl Processors {
    /// Reads them.
    pub(super) fn read<'a>(
        host: &KvmHost,
        vm: &VmFd,
        pit: bool,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Self, SnapshotError> {
        // vCPUs first: the controllers' state includes what these have taken.
        let vcpus = vcpus.map(|vcpu| VcpuState::read(host, vcpu)).collect::<Result<_, _>>()?;
        Ok(Self { vcpus, vm: VmState::read(vm, pit)? })
    }

    /// From a snapshot into a machine that has not run; what is to be written once more when it first does.
    pub(super) fn restore<'a>(
        snapshot: &Snapshot,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Clocks, SnapshotError> {
        let state: VmState = snapshot.take("")?;
        state.write_chips(vm)?;
        let mut counters = Vec::new();
        for (id, vcpu) in vcpus.enumerate() {
            let state = snapshot.take::<VcpuState>(&vcpu_owner(id))?;
            state.write(vcpu)?;
            counters.push(state.counter());
        }
        // After the MSRs that tell KVM where the guest's clock pages are.
        state.write_clock(vm)?;
        Ok(Clocks { counters, vm: state })
    }

    /// Into a snapshot.
    pub(super) fn put(&self, writer: &mut Writer) -> Result<(), SnapshotError> {
        writer.put("", &self.vm)?;
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            writer.put(&vcpu_owner(id), vcpu)?;
        }
        Ok(())
    }

    /// What a snapshot of them demands: what they have.
    pub(super) fn demand(&self) -> Host {
        let cpuid: Vec<_> = self.vcpus[0].cpuid.iter().map(|entry| entry.0).collect();
        features::host(&cpuid)
    }
}
