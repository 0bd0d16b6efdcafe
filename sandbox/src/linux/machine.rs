//! A running Linux guest: memory, KVM's VM, devices on the buses, vCPU threads.

use std::io::Write;
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::boot::{self, BootSource, Entry};
use super::bus::{Bus, Shared};
use super::devices::balloon::{Balloon, BalloonDevice};
use super::devices::block::{Block, BlockDevice};
use super::devices::console::{Console, ConsoleDevice};
use super::devices::fs::Fs;
use super::devices::net::{Net, NetDevice};
use super::devices::p9::P9;
use super::devices::power::{CLOCK_PORT, I8042, I8042_DATA_PORT, I8042_PORTS, NoClock, POWER_PORTS, Power};
use super::devices::rng::Rng;
use super::devices::serial::{Com1, Log};
use super::devices::vsock::{Vsock, VsockDevice};
use super::end::{End, Ending};
use super::error::Error;
use super::layout::{self, MAX_VCPUS, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT, Slot, VIRTIO_MMIO_SIZE};
use super::memory::{self, Memory};
use super::sys;
use super::vcpu::{self, Runner};
use super::virtio::VirtioDevice;
use super::virtio::mmio::Transport;
use crate::kvm::sys::KickTarget;
use crate::kvm::vm::{self, Host};
use crate::share::Share;

/// What a machine is made of.
pub struct MachineConfig {
    /// Kernel, initramfs, command line.
    pub boot: BootSource,
    /// Guest memory, a multiple of 4096.
    pub memory_bytes: u64,
    /// 1 to [`MAX_VCPUS`](layout::MAX_VCPUS).
    pub vcpus: u8,
    /// Whether there is a PIT, for kernels that cannot do without.
    pub pit: bool,
    /// Takes what the kernel writes to its console.
    pub console: Box<dyn Write + Send>,
    /// Its virtio devices, in the order of their addresses.
    pub devices: Vec<Device>,
}

/// A virtio device to be made: the rows of the device table.
#[derive(Clone, Debug)]
pub enum Device {
    /// Random bytes from the host.
    Rng,
    /// A shared directory over 9P.
    P9 {
        /// By which name the guest mounts it: `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`.
        tag: String,
        /// The directory.
        share: Arc<Share>,
    },
    /// A shared directory over virtio-fs.
    Fs {
        /// By which name the guest mounts it: `mount -t virtiofs TAG /mnt`.
        tag: String,
        /// The directory.
        share: Arc<Share>,
    },
    /// Streams between the guest and this process.
    Vsock(Vsock),
    /// A disk: `/dev/vda`, `/dev/vdb` and so on, in the order of the disks.
    Block(Block),
    /// Takes memory from the running guest and gives it back.
    Balloon(Balloon),
    /// A terminal: `/dev/hvc0`.
    Console(Console),
    /// A network card: `eth0`, `eth1` and so on.
    Net(Net),
}

impl Device {
    pub(super) fn make(&self) -> Box<dyn VirtioDevice> {
        match self {
            Self::Rng => Box::new(Rng::default()),
            Self::P9 { tag, share } => Box::new(P9::new(tag, share.clone())),
            Self::Fs { tag, share } => Box::new(Fs::new(tag, share.clone())),
            Self::Block(block) => Box::new(BlockDevice::new(block.clone())),
            Self::Balloon(balloon) => Box::new(BalloonDevice::new(balloon.clone())),
            Self::Console(console) => Box::new(ConsoleDevice::new(console.clone())),
            Self::Net(net) => Box::new(NetDevice::new(net.clone())),
            Self::Vsock(vsock) => Box::new(VsockDevice::new(vsock.clone())),
        }
    }
}

/// Serial ports have eight registers.
const SERIAL_PORTS: u64 = 8;

/// A guest that was started. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    threads: Vec<VcpuThread>,
    ending: Arc<Ending>,
    // Dropped in this order: KVM lets go of the memory before it is unmapped.
    _vm: Arc<VmFd>,
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct VcpuThread {
    handle: Option<JoinHandle<()>>,
    target: KickTarget,
}

impl Machine {
    /// Makes the machine and starts it at the kernel's entry.
    ///
    /// # Errors
    /// Where the configuration does not hold, a file cannot be read or KVM refuses.
    pub fn boot(config: MachineConfig) -> Result<Self, Error> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(Error::Config(format!("{} vCPUs: 1 to {MAX_VCPUS} are possible", config.vcpus)));
        }
        let host = vm::host().map_err(|error| Error::Unavailable(error.to_string()))?;
        let memory = Arc::new(memory::allocate(config.memory_bytes)?);
        let slots = slots(config.devices.len())?;
        let entry = boot::load(&memory, config.memory_bytes, &config.boot, config.vcpus, &slots)?;
        let vm = Arc::new(create_vm(host, &memory, config.pit)?);
        let ending = Arc::new(Ending::default());
        let ports = Arc::new(ports(&vm, config.console, &ending)?);
        let mmio = Arc::new(mmio(&vm, &memory, &slots, &config.devices)?);
        let runners = runners(host, &vm, config.vcpus, &Buses { ports, mmio, ending: ending.clone() })?;
        start_state(&runners, &memory, entry)?;
        let threads = runners.into_iter().map(spawn).collect::<Result<_, Error>>()?;
        Ok(Self { threads, ending, _vm: vm, memory })
    }

    /// Waits until the guest has ended; `None` when `deadline` passed first (the guest then runs on).
    #[must_use]
    pub fn wait(&self, deadline: Option<Instant>) -> Option<End> {
        self.ending.wait(deadline)
    }

    /// How it ended, once it has.
    pub async fn ended(&self) -> End {
        std::future::poll_fn(|context| self.ending.poll(context)).await
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end_now(&self) -> Option<End> {
        self.wait(Some(Instant::now()))
    }

    /// Bytes of its memory that the host has filled, the kernel's file among them.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        sys::resident_bytes(&self.memory)
    }

    /// Its memory, for whoever counts it.
    pub(crate) fn memory(&self) -> Weak<Memory> {
        Arc::downgrade(&self.memory)
    }

    /// Stops the guest where it is; returns how it ended, which may have been earlier.
    pub fn stop(self) -> End {
        self.ending.note(End::Stopped);
        self.ending.wait(None).unwrap_or(End::Stopped)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ending.note(End::Stopped);
        for thread in &mut self.threads {
            // The kick stays with the vCPU until its next entry, so it cannot come at the wrong moment.
            thread.target.kick();
            if let Some(handle) = thread.handle.take() {
                // A panic there has been printed; the machine goes away either way.
                let _ = handle.join();
            }
        }
    }
}

fn create_vm(host: &Host, memory: &Memory, pit: bool) -> Result<VmFd, Error> {
    let vm = host.kvm().create_vm().map_err(Error::kvm("creating a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(Error::kvm("placing the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(Error::kvm("placing the TSS"))?;
    vm.create_irq_chip().map_err(Error::kvm("creating the interrupt controllers"))?;
    if pit {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).map_err(Error::kvm("creating the PIT"))?;
    }
    sys::set_memslots(&vm, memory)?;
    Ok(vm)
}

/// The devices on I/O ports.
fn ports(vm: &VmFd, console: Log, ending: &Arc<Ending>) -> Result<Bus, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(Error::host("making an eventfd"))?;
    vm.register_irqfd(&interrupt, SERIAL_GSI).map_err(Error::kvm("connecting an interrupt"))?;
    let mut ports = Bus::default();
    let com1 = Com1::new(interrupt, console, ending.clone());
    ports.insert(SERIAL_PORT.into(), SERIAL_PORTS, shared(com1));
    ports.insert(SLEEP_CONTROL_PORT.into(), POWER_PORTS, shared(Power(ending.clone())));
    ports.insert(I8042_DATA_PORT.into(), I8042_PORTS, shared(I8042(ending.clone())));
    ports.insert(CLOCK_PORT.into(), 2, shared(NoClock));
    Ok(ports)
}

fn shared(device: impl super::bus::BusDevice + 'static) -> Shared {
    Arc::new(Mutex::new(device))
}

/// Where `count` devices are.
fn slots(count: usize) -> Result<Vec<Slot>, Error> {
    let slots = (0..count).map(layout::virtio_slot).collect::<Option<Vec<_>>>();
    slots.ok_or_else(|| {
        Error::Config(format!("{count} virtio devices are more than a machine has places for"))
    })
}

/// The virtio devices.
fn mmio(vm: &VmFd, memory: &Arc<Memory>, slots: &[Slot], devices: &[Device]) -> Result<Bus, Error> {
    let mut bus = Bus::default();
    for (slot, device) in slots.iter().zip(devices) {
        let transport = Transport::connect(vm, *slot, memory.clone(), device.make())?;
        bus.insert(slot.address, VIRTIO_MMIO_SIZE, shared(transport));
    }
    Ok(bus)
}

/// What all vCPUs share.
struct Buses {
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    ending: Arc<Ending>,
}

fn runners(host: &Host, vm: &VmFd, count: u8, buses: &Buses) -> Result<Vec<Runner>, Error> {
    let make = |id: u8| {
        let vcpu = vm.create_vcpu(id.into()).map_err(Error::kvm("creating a vCPU"))?;
        vcpu::configure(&vcpu, host.cpuid(), id, count)?;
        let Buses { ports, mmio, ending } = buses;
        Ok(Runner { id, vcpu, ports: ports.clone(), mmio: mmio.clone(), ending: ending.clone() })
    };
    (0..count).map(make).collect()
}

/// The first processor begins at the kernel's entry; the others wait for it to wake them.
fn start_state(runners: &[Runner], memory: &Memory, entry: Entry) -> Result<(), Error> {
    boot::set_boot_state(&runners[0].vcpu, memory, entry)
}

fn spawn(runner: Runner) -> Result<VcpuThread, Error> {
    let (tell, target) = channel();
    let name = format!("vcpu{}", runner.id);
    let work = move || {
        let _ = tell.send(KickTarget::current());
        runner.run();
    };
    let handle =
        std::thread::Builder::new().name(name).spawn(work).map_err(Error::host("starting a vCPU thread"))?;
    let target = target.recv().map_err(|_| Error::Config("a vCPU thread ended before it began".into()))?;
    Ok(VcpuThread { handle: Some(handle), target })
}
