//! A running Linux guest: memory, KVM's VM, devices on the buses, vCPU threads.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{VcpuFd, VmFd};
use novum_snapshot::{Digest, MAX_DEPTH, Snapshot, Store, WriteError, Writer};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::STACK_BYTES;
use super::boot::{self, BootSource};
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
use super::generation;
use super::layout::{self, MAX_VCPUS, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT, Slot, VIRTIO_MMIO_SIZE};
use super::memory::{self, Memory};
use super::pause::Gate;
use super::snapshot::{
    self, Changes, Changing, Clocks, MachineState, Processors, SnapshotError, Uart, WorkingSet, device_owner,
};
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

/// Pages that a guest may change between two looks at what it changes, for which there is room without looking for memory.
const ROOM_PAGES: usize = 128;

/// Serial ports have eight registers.
const SERIAL_PORTS: u64 = 8;

/// A machine that was saved.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    /// The snapshot.
    pub digest: Digest,
    /// How long the machine stood.
    pub stood: Duration,
}

/// A guest that was started. Dropping it stops it.
pub struct Machine {
    threads: Vec<VcpuThread>,
    gate: Arc<Gate>,
    ending: Arc<Ending>,
    com1: Arc<Mutex<Com1>>,
    transports: Vec<Arc<Mutex<Transport>>>,
    made: MachineState,
    /// What its memory is mapped from.
    parent: Option<Snapshot>,
    /// The devices have their threads.
    devices_run: AtomicBool,
    /// Of a machine that was restored and has not run.
    clocks: Mutex<Option<Clocks>>,
    // Dropped in this order: KVM lets go of the memory before it is unmapped.
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
}

struct VcpuThread {
    handle: Option<JoinHandle<()>>,
    target: KickTarget,
    vcpu: Arc<Mutex<VcpuFd>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("made", &self.made)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Makes the machine and starts it at the kernel's entry.
    ///
    /// # Errors
    /// Where the configuration does not hold, a file cannot be read or KVM refuses.
    pub fn boot(config: MachineConfig) -> Result<Self, Error> {
        let MachineConfig { boot, memory_bytes, vcpus, pit, console, devices } = config;
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(Error::Config(format!("{vcpus} vCPUs: 1 to {MAX_VCPUS} are possible")));
        }
        let host = vm::host().map_err(|error| Error::Unavailable(error.to_string()))?;
        let memory = Arc::new(memory::allocate(memory_bytes)?);
        let slots = slots(devices.len())?;
        let entry = boot::load(&memory, memory_bytes, &boot, vcpus, &slots)?;
        generation::renew(&memory)?;
        let made = MachineState { memory_bytes, vcpus, pit, devices: devices.len() as u8 };
        let parts = Parts::make(host, &made, memory.clone(), &slots, &devices, console, None)?;
        for (id, vcpu) in (0..).zip(&parts.vcpus) {
            vcpu::configure(vcpu, host.cpuid(), id, vcpus)?;
        }
        // The first processor begins at the kernel's entry; the others wait for it to wake them.
        boot::set_boot_state(&parts.vcpus[0], &memory, entry)?;
        parts.start(made, memory, None, Gate::default())
    }

    /// Makes the machine that was saved as `snapshot`, paused: [`Self::resume`] lets it run. `devices` are those of the
    /// saved one in their order; what they stand for on the host (directories, disks, taps, addresses) is as given here.
    ///
    /// # Errors
    /// Where this host or the devices do not fit, or KVM refuses.
    pub fn restore(
        snapshot: &Snapshot,
        devices: &[Device],
        console: Box<dyn Write + Send>,
    ) -> Result<Self, Error> {
        Self::restore_with(snapshot, devices, console, None)
    }

    /// As [`Self::restore`], with the pages of `working_set` at hand.
    pub(crate) fn restore_with(
        snapshot: &Snapshot,
        devices: &[Device],
        console: Box<dyn Write + Send>,
        working_set: Option<&WorkingSet>,
    ) -> Result<Self, Error> {
        let host = vm::host().map_err(|error| Error::Unavailable(error.to_string()))?;
        let made = MachineState::take(snapshot, host)?;
        if devices.len() != usize::from(made.devices) {
            let reason = format!("the snapshot has {} devices, not {}", made.devices, devices.len());
            return Err(SnapshotError::Refused(reason).into());
        }
        let memory = Arc::new(snapshot::restore_memory(snapshot, made.memory_bytes)?);
        if let Some(set) = working_set {
            set.populate(&memory);
        }
        generation::renew(&memory)?;
        let slots = slots(devices.len())?;
        let uart = snapshot.take(snapshot::SERIAL_OWNER).map_err(SnapshotError::from)?;
        let parts = Parts::make(host, &made, memory.clone(), &slots, devices, console, Some(uart))?;
        let clocks = Processors::restore(snapshot, &parts.vm, parts.vcpus.iter())?;
        generation::tell(&parts.vm)?;
        for (index, transport) in parts.transports.iter().enumerate() {
            transport.lock().restore(&device_owner(index), snapshot).map_err(SnapshotError::from)?;
        }
        let gate = Gate::default();
        gate.close();
        let machine = parts.start(made, memory, Some(snapshot.clone()), gate)?;
        *machine.clocks.lock() = Some(clocks);
        machine.devices_run.store(false, Ordering::SeqCst);
        Ok(machine)
    }

    /// Stops all vCPUs between two instructions and all devices between two requests. Nothing in the guest goes on until
    /// [`Self::resume`].
    ///
    /// # Errors
    /// [`SnapshotError::Ended`] where it has ended before.
    pub fn pause(&self) -> Result<(), SnapshotError> {
        self.gate.close();
        for thread in &self.threads {
            thread.target.kick();
        }
        self.gate.wait(self.threads.len());
        if let Some(end) = self.end_now() {
            self.gate.open();
            return Err(SnapshotError::Ended(end));
        }
        for transport in &self.transports {
            transport.lock().pause();
        }
        self.devices_run.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Gives the devices of a paused machine their threads ahead of [`Self::resume`], for which there is then less to do. The
    /// guest still stands.
    ///
    /// # Errors
    /// Where a device has no thread; the machine then stays paused.
    pub(crate) fn start_devices(&self) -> Result<(), SnapshotError> {
        if self.devices_run.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        for transport in &self.transports {
            transport.lock().resume().map_err(SnapshotError::host("starting a device"))?;
        }
        Ok(())
    }

    /// Lets a paused machine go on. Its clock has stood meanwhile.
    ///
    /// # Errors
    /// Where a device has no thread; the machine then stays paused.
    pub fn resume(&self) -> Result<(), SnapshotError> {
        self.start_devices()?;
        let vcpus: Vec<_> = self.threads.iter().map(|thread| thread.vcpu.lock()).collect();
        if let Some(clocks) = self.clocks.lock().take() {
            clocks.write(&self.vm, vcpus.iter().map(|vcpu| &**vcpu))?;
        }
        for vcpu in &vcpus {
            // It fails where the guest does not use KVM's clock, which then needs not be told.
            let _ = vcpu.kvmclock_ctrl();
        }
        drop(vcpus);
        self.gate.open();
        Ok(())
    }

    /// Saves the machine to `store`: as a diff where it came from a snapshot that is there. `more` adds sections. Memory is
    /// written while the guest runs; the machine stands while its state is read and what changed meanwhile is copied.
    ///
    /// # Errors
    /// Where it has ended, or KVM or the store fails; the store then holds nothing new.
    pub fn snapshot(
        &self,
        store: &Store,
        more: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
    ) -> Result<Saved, SnapshotError> {
        self.log_writes(true)?;
        let saved = self.snapshot_logged(store, more);
        self.log_writes(false)?;
        saved
    }

    fn snapshot_logged(
        &self,
        store: &Store,
        more: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
    ) -> Result<Saved, SnapshotError> {
        let parent = self.parent_in(store);
        let mut writer = snapshot::writer(store, parent)?;
        let changing = Changing::begin(&self.vm, &self.memory)?;
        snapshot::write_memory(&self.memory, &mut writer, parent.is_some())?;
        let mut changes = Changes::room(ROOM_PAGES);
        // What it changed in that time is more than what it changes in this.
        changes.copy(&self.memory, changing.pages()?);
        changes.write(&mut writer)?;
        let begun = Instant::now();
        self.pause()?;
        let saved = self.save_state(&mut writer, more).and_then(|processors| {
            let mut pages = changing.pages()?;
            self.transports.iter().for_each(|transport| pages.extend(transport.lock().written()));
            changes.copy(&self.memory, pages);
            Ok(processors)
        });
        self.resume()?;
        let stood = begun.elapsed();
        drop(changing);
        changes.write(&mut writer)?;
        writer.demand(saved?.demand())?;
        Ok(Saved { digest: writer.publish()?, stood })
    }

    /// Saves a paused machine, which stays paused, in the same way.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn save(
        &self,
        store: &Store,
        more: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
    ) -> Result<Digest, SnapshotError> {
        let parent = self.parent_in(store);
        let mut writer = snapshot::writer(store, parent)?;
        let processors = self.save_state(&mut writer, more)?;
        writer.demand(processors.demand())?;
        snapshot::write_memory(&self.memory, &mut writer, parent.is_some())?;
        Ok(writer.publish()?)
    }

    fn log_writes(&self, on: bool) -> Result<(), SnapshotError> {
        for transport in &self.transports {
            transport.lock().log_writes(on).map_err(SnapshotError::host("starting a device"))?;
        }
        Ok(())
    }

    /// What a snapshot in `store` can be a diff over.
    fn parent_in(&self, store: &Store) -> Option<&Snapshot> {
        let below = |parent: &&Snapshot| parent.depth() + 1 < MAX_DEPTH && store.contains(&parent.digest());
        self.parent.as_ref().filter(below)
    }

    /// Everything but the memory, of the paused machine.
    fn save_state(
        &self,
        writer: &mut Writer,
        more: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
    ) -> Result<Processors, SnapshotError> {
        let host = vm::host().map_err(|error| SnapshotError::Refused(error.to_string()))?;
        let vcpus: Vec<_> = self.threads.iter().map(|thread| thread.vcpu.lock()).collect();
        let processors = Processors::read(host, &self.vm, self.made.pit, vcpus.iter().map(|vcpu| &**vcpu))?;
        processors.put(writer)?;
        writer.put("", &self.made)?;
        writer.put(snapshot::SERIAL_OWNER, &self.com1.lock().state())?;
        for (index, transport) in self.transports.iter().enumerate() {
            transport.lock().save(&device_owner(index), writer)?;
        }
        more(writer)?;
        Ok(processors)
    }

    /// Bytes of its memory that are its own, not shared with a snapshot or the kernel's file.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        snapshot::private_bytes(&self.memory)
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

    /// What it has touched of the snapshot that it came from.
    pub(crate) fn working_set(&self) -> std::io::Result<WorkingSet> {
        WorkingSet::learn(&self.memory)
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
        self.gate.open();
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

/// A machine whose vCPUs have no threads yet.
struct Parts {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    com1: Arc<Mutex<Com1>>,
    transports: Vec<Arc<Mutex<Transport>>>,
    ending: Arc<Ending>,
}

impl Parts {
    fn make(
        host: &Host,
        made: &MachineState,
        memory: Arc<Memory>,
        slots: &[Slot],
        devices: &[Device],
        console: Log,
        uart: Option<Uart>,
    ) -> Result<Self, Error> {
        let vm = Arc::new(create_vm(host, &memory, made.pit)?);
        let ending = Arc::new(Ending::default());
        let com1 = Arc::new(Mutex::new(com1(&vm, console, &ending, uart)?));
        let ports = Arc::new(ports(com1.clone(), &ending));
        let (mut mmio, mut transports) = (Bus::default(), Vec::new());
        for (slot, device) in slots.iter().zip(devices) {
            let transport = Transport::connect(&vm, *slot, memory.clone(), device.make())?;
            let transport = Arc::new(Mutex::new(transport));
            mmio.insert(slot.address, VIRTIO_MMIO_SIZE, transport.clone());
            transports.push(transport);
        }
        let vcpu = |id: u8| vm.create_vcpu(id.into()).map_err(Error::kvm("creating a vCPU"));
        let vcpus = (0..made.vcpus).map(vcpu).collect::<Result<_, _>>()?;
        Ok(Self { vm, vcpus, ports, mmio: Arc::new(mmio), com1, transports, ending })
    }

    /// Gives each vCPU its thread, which begins as the gate says.
    fn start(
        self,
        made: MachineState,
        memory: Arc<Memory>,
        parent: Option<Snapshot>,
        gate: Gate,
    ) -> Result<Machine, Error> {
        let Self { vm, vcpus, ports, mmio, com1, transports, ending } = self;
        let gate = Arc::new(gate);
        let mut machine = Machine {
            threads: Vec::new(),
            gate: gate.clone(),
            ending: ending.clone(),
            com1,
            transports,
            made,
            parent,
            devices_run: AtomicBool::new(true),
            clocks: Mutex::new(None),
            vm,
            memory,
        };
        for (id, vcpu) in (0..).zip(vcpus) {
            let runner = Runner {
                id,
                vcpu: Arc::new(Mutex::new(vcpu)),
                ports: ports.clone(),
                mmio: mmio.clone(),
                ending: ending.clone(),
                gate: gate.clone(),
            };
            // Should one fail, dropping the machine ends those before it.
            machine.threads.push(spawn(runner)?);
        }
        Ok(machine)
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
    sys::set_memslots(&vm, memory, false)?;
    Ok(vm)
}

fn com1(vm: &VmFd, console: Log, ending: &Arc<Ending>, uart: Option<Uart>) -> Result<Com1, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(Error::host("making an eventfd"))?;
    vm.register_irqfd(&interrupt, SERIAL_GSI).map_err(Error::kvm("connecting an interrupt"))?;
    let com1 = Com1::new(interrupt, console, ending.clone(), uart);
    com1.ok_or_else(|| SnapshotError::Refused("its serial port is in no possible state".into()).into())
}

/// The devices on I/O ports.
fn ports(com1: Arc<Mutex<Com1>>, ending: &Arc<Ending>) -> Bus {
    let mut ports = Bus::default();
    ports.insert(SERIAL_PORT.into(), SERIAL_PORTS, com1);
    ports.insert(SLEEP_CONTROL_PORT.into(), POWER_PORTS, shared(Power(ending.clone())));
    ports.insert(I8042_DATA_PORT.into(), I8042_PORTS, shared(I8042(ending.clone())));
    ports.insert(CLOCK_PORT.into(), 2, shared(NoClock));
    ports
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

fn spawn(runner: Runner) -> Result<VcpuThread, Error> {
    let (tell, target) = channel();
    let (name, vcpu) = (format!("vcpu{}", runner.id), runner.vcpu.clone());
    let work = move || {
        let _ = tell.send(KickTarget::current());
        runner.run();
    };
    let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
    let handle = thread.spawn(work).map_err(Error::host("starting a vCPU thread"))?;
    let target = target.recv().map_err(|_| Error::Config("a vCPU thread ended before it began".into()))?;
    Ok(VcpuThread { handle: Some(handle), target, vcpu })
}
