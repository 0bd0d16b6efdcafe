//! The registers of a virtio-mmio device, version 2.
//!
//! Source: VIRTIO 1.2 §4.2.2 (registers), §3.1 (initialisation), §2.1 (status).

use std::collections::BTreeSet;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::{Activation, Interrupt, Ring};
use super::{COMMON_FEATURES, VERSION_1, VirtioDevice};
use crate::linux::bus::BusDevice;
use crate::linux::error::Error;
use crate::linux::layout::{PAGE, Slot};
use crate::linux::memory::Memory;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NOVM");

/// Offsets of registers.
pub(super) mod register {
    pub(in crate::linux::virtio) const MAGIC: u64 = 0x000;
    pub(in crate::linux::virtio) const VERSION: u64 = 0x004;
    pub(in crate::linux::virtio) const DEVICE_ID: u64 = 0x008;
    pub(in crate::linux::virtio) const VENDOR: u64 = 0x00c;
    pub(in crate::linux::virtio) const DEVICE_FEATURES: u64 = 0x010;
    pub(in crate::linux::virtio) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(in crate::linux::virtio) const DRIVER_FEATURES: u64 = 0x020;
    pub(in crate::linux::virtio) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(in crate::linux::virtio) const QUEUE_SEL: u64 = 0x030;
    pub(in crate::linux::virtio) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(in crate::linux::virtio) const QUEUE_NUM: u64 = 0x038;
    pub(in crate::linux::virtio) const QUEUE_READY: u64 = 0x044;
    pub(in crate::linux::virtio) const QUEUE_NOTIFY: u64 = 0x050;
    pub(in crate::linux::virtio) const INTERRUPT_STATUS: u64 = 0x060;
    pub(in crate::linux::virtio) const INTERRUPT_ACK: u64 = 0x064;
    pub(in crate::linux::virtio) const STATUS: u64 = 0x070;
    pub(in crate::linux::virtio) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(in crate::linux::virtio) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(in crate::linux::virtio) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(in crate::linux::virtio) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(in crate::linux::virtio) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(in crate::linux::virtio) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(in crate::linux::virtio) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(in crate::linux::virtio) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(in crate::linux::virtio) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(in crate::linux::virtio) const CONFIG: u64 = 0x100;
}

/// A used ring: what stands around its elements, and each of these (VIRTIO 1.2 §2.7.8).
const USED_RING_BYTES: u64 = 6;
const USED_BYTES: u64 = 8;

/// Device status bits.
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;

/// One device with its registers.
pub(crate) struct Transport {
    pub(super) device: Box<dyn VirtioDevice>,
    memory: Arc<Memory>,
    pub(super) interrupt: Interrupt,
    /// For each queue: what its kick writes to.
    kicks: Vec<EventFd>,
    /// As the driver set them up and the device left them; not those in use while the device is active.
    pub(super) queues: Vec<Queue>,
    /// The driver has started the device: it is active, or paused.
    pub(super) started: bool,
    /// The device has the rings.
    pub(super) active: bool,
    pub(super) status: u32,
    pub(super) queue: u32,
    pub(super) device_features_half: u32,
    pub(super) driver_features_half: u32,
    pub(super) driver_features: u64,
}

impl Transport {
    /// Connects `device` at `slot`: kicks by ioeventfd, its interrupt by irqfd.
    pub(crate) fn connect(
        vm: &VmFd,
        slot: Slot,
        memory: Arc<Memory>,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Self, Error> {
        let event = || EventFd::new(EFD_NONBLOCK).map_err(Error::host("making an eventfd"));
        let interrupt = event()?;
        vm.register_irqfd(&interrupt, slot.gsi).map_err(Error::kvm("connecting an interrupt"))?;
        let mut kicks = Vec::new();
        for index in 0..device.queue_sizes().len() {
            let kick = event()?;
            let address = IoEventAddress::Mmio(slot.address + register::QUEUE_NOTIFY);
            vm.register_ioevent(&kick, &address, index as u32).map_err(Error::kvm("connecting a queue"))?;
            kicks.push(kick);
        }
        Ok(Self::new(device, memory, Interrupt::new(interrupt), kicks))
    }

    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<Memory>,
        interrupt: Interrupt,
        kicks: Vec<EventFd>,
    ) -> Self {
        let queues = new_queues(device.queue_sizes());
        Self {
            device,
            memory,
            interrupt,
            kicks,
            queues,
            started: false,
            active: false,
            status: 0,
            queue: 0,
            device_features_half: 0,
            driver_features_half: 0,
            driver_features: 0,
        }
    }

    /// From now on the pages that the device writes to are noted, or not any more.
    ///
    /// # Errors
    /// Where the host has no thread for the device.
    pub(crate) fn log_writes(&mut self, on: bool) -> std::io::Result<()> {
        if !on {
            self.interrupt.written().set(false);
            return Ok(());
        }
        // No buffer is with the device meanwhile.
        let active = self.active;
        self.pause();
        self.interrupt.written().set(true);
        if active { self.resume() } else { Ok(()) }
    }

    /// The pages that a paused device has written to since [`Self::log_writes`], by number, and some more.
    pub(crate) fn written(&self) -> BTreeSet<u64> {
        let mut pages = self.interrupt.written().pages();
        for queue in self.queues.iter().filter(|queue| queue.ready()) {
            let (ring, length) = (queue.used_ring(), USED_RING_BYTES + USED_BYTES * u64::from(queue.size()));
            pages.extend(ring / PAGE..=ring.saturating_add(length) / PAGE);
        }
        pages
    }

    /// Stops the device's work; its queues are as the driver left them.
    pub(crate) fn pause(&mut self) {
        if std::mem::take(&mut self.active) {
            self.interrupt.set_stopping(true);
            self.queues = self.device.pause();
            self.interrupt.set_stopping(false);
            if self.queues.len() != self.kicks.len() {
                // Its thread is gone, and the rings with it: a bug, which a test must see.
                assert!(
                    !cfg!(any(test, feature = "fuzzing")) || std::thread::panicking(),
                    "a device has died"
                );
                self.queues = new_queues(self.device.queue_sizes());
                self.started = false;
                self.status |= NEEDS_RESET;
            }
        }
    }

    pub(super) fn features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn read_register(&self, offset: u64) -> u32 {
        let half = |value: u64, sel: u32| match sel {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.device_id(),
            register::VENDOR => VENDOR,
            register::DEVICE_FEATURES => half(self.features(), self.device_features_half),
            register::QUEUE_NUM_MAX => {
                self.device.queue_sizes().get(self.queue as usize).map_or(0, |n| (*n).into())
            }
            register::QUEUE_READY => self.queues.get(self.queue as usize).is_some_and(QueueT::ready).into(),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.status,
            // No shared memory regions: length and base are -1.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.interrupt.generation(),
            // The rest is write-only or not there.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_half = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_half = value,
            register::DRIVER_FEATURES => self.set_driver_features(value),
            register::QUEUE_SEL => self.queue = value,
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.set_status(value),
            // Kicks of queues that exist are taken by KVM and never come here.
            register::QUEUE_NOTIFY => {}
            _ => self.write_queue_register(offset, value),
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_half {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// A queue can be changed until the driver is ready.
    fn write_queue_register(&mut self, offset: u64, value: u32) {
        if self.started {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue as usize) else { return };
        match offset {
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut value = value & 0xff;
        // Bits are only added; what was not negotiated is not accepted.
        let offered = self.driver_features & !self.features() == 0 && self.driver_features & VERSION_1 != 0;
        if value & FEATURES_OK != 0 && !offered {
            value &= !FEATURES_OK;
        }
        let ready = value & DRIVER_OK != 0 && self.status & DRIVER_OK == 0 && value & FEATURES_OK != 0;
        self.status = value | self.status & NEEDS_RESET;
        if ready && !self.started && self.activate().is_err() {
            self.status |= NEEDS_RESET;
        }
    }

    pub(super) fn activate(&mut self) -> std::io::Result<()> {
        let event_idx = self.driver_features & super::EVENT_IDX != 0;
        let mut rings = Vec::new();
        let queues = std::mem::replace(&mut self.queues, new_queues(self.device.queue_sizes()));
        for (mut queue, kick) in queues.into_iter().zip(&self.kicks) {
            // A driver may leave queues alone.
            if queue.ready() && !queue.is_valid(&*self.memory) {
                return Err(std::io::ErrorKind::InvalidInput.into());
            }
            queue.set_event_idx(event_idx);
            rings.push(Ring::new(queue, kick.try_clone()?, self.memory.clone(), self.interrupt.clone()));
        }
        let (features, interrupt) = (self.driver_features, self.interrupt.clone());
        self.device.activate(Activation { rings, features, interrupt })?;
        (self.started, self.active) = (true, true);
        Ok(())
    }

    fn reset(&mut self) {
        self.pause();
        self.device.reset();
        self.started = false;
        self.queues = new_queues(self.device.queue_sizes());
        self.interrupt.acknowledge(u32::MAX);
        (self.status, self.queue, self.driver_features) = (0, 0, 0);
        (self.device_features_half, self.driver_features_half) = (0, 0);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.pause();
    }
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            self.device.read_config(offset - register::CONFIG, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            // Registers are read as aligned words; anything else leaves the buffer as it is.
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            self.device.write_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

fn new_queues(sizes: &[u16]) -> Vec<Queue> {
    let queue = |size: &u16| Queue::new(*size).expect("devices name sizes that are powers of two");
    sizes.iter().map(queue).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::linux::memory;

    struct Probe(Arc<AtomicUsize>, Vec<Ring>);

    impl VirtioDevice for Probe {
        fn device_id(&self) -> u32 {
            4
        }
        fn queue_sizes(&self) -> &[u16] {
            &[64, 64]
        }
        fn features(&self) -> u64 {
            1
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            crate::linux::virtio::read_config_bytes(b"conf", offset, data);
        }
        fn activate(&mut self, activation: Activation) -> std::io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1 = activation.rings;
            Ok(())
        }
        fn pause(&mut self) -> Vec<Queue> {
            std::mem::take(&mut self.1).into_iter().map(Ring::into_queue).collect()
        }
    }

    fn transport() -> (Transport, Arc<AtomicUsize>) {
        let activations = Arc::new(AtomicUsize::new(0));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = Arc::new(memory::allocate(32 << 20).unwrap());
        let device = Box::new(Probe(activations.clone(), Vec::new()));
        (Transport::new(device, memory, Interrupt::new(event()), vec![event(), event()]), activations)
    }

    fn write(transport: &mut Transport, offset: u64, value: u32) {
        transport.write(offset, &value.to_le_bytes());
    }

    fn read(transport: &mut Transport, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// As a driver does it, with these driver features.
    fn initialise(transport: &mut Transport, features: u64, ring: u32) {
        write(transport, register::STATUS, 3);
        for half in 0..2 {
            write(transport, register::DRIVER_FEATURES_SEL, half);
            write(transport, register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        write(transport, register::STATUS, 3 | FEATURES_OK);
        for queue in 0..2 {
            write(transport, register::QUEUE_SEL, queue);
            write(transport, register::QUEUE_NUM, 64);
            write(transport, register::QUEUE_DESC_LOW, ring + queue * 0x4000);
            write(transport, register::QUEUE_DRIVER_LOW, ring + queue * 0x4000 + 0x1000);
            write(transport, register::QUEUE_DEVICE_LOW, ring + queue * 0x4000 + 0x2000);
            write(transport, register::QUEUE_READY, 1);
        }
        let status = read(transport, register::STATUS);
        write(transport, register::STATUS, status | DRIVER_OK);
    }

    #[test]
    fn a_driver_that_does_it_right_activates_the_device_once() {
        let (mut transport, activations) = transport();
        assert_eq!(read(&mut transport, register::MAGIC), u32::from_le_bytes(*b"virt"));
        assert_eq!(read(&mut transport, register::CONFIG), u32::from_le_bytes(*b"conf"));
        initialise(&mut transport, VERSION_1 | 1, 0x10_0000);
        assert_eq!(activations.load(Ordering::SeqCst), 1);
        assert_eq!(read(&mut transport, register::STATUS), 3 | FEATURES_OK | DRIVER_OK);
        write(&mut transport, register::STATUS, 0);
        assert_eq!(read(&mut transport, register::STATUS), 0);
        initialise(&mut transport, VERSION_1, 0x10_0000);
        assert_eq!(activations.load(Ordering::SeqCst), 2, "after a reset it starts anew");
    }

    #[test]
    fn features_that_were_not_offered_are_not_accepted() {
        let (mut transport, activations) = transport();
        initialise(&mut transport, VERSION_1 | 1 << 50, 0x10_0000);
        assert_eq!(read(&mut transport, register::STATUS) & FEATURES_OK, 0);
        assert_eq!(activations.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_ring_outside_of_memory_asks_for_a_reset() {
        let (mut transport, activations) = transport();
        initialise(&mut transport, VERSION_1, 0xb000_0000);
        assert_eq!(read(&mut transport, register::STATUS) & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(activations.load(Ordering::SeqCst), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_in_registers_does_no_harm(
            writes in proptest::collection::vec((0u64..0x120, any::<u32>(), 1usize..9), 0..200)
        ) {
            let (mut transport, _) = transport();
            for (offset, value, length) in writes {
                let bytes = u64::from(value).to_le_bytes();
                transport.write(offset, &bytes[..length.min(8)]);
                transport.write(offset & !3, &value.to_le_bytes());
                transport.read(offset, &mut [0; 8][..length.min(8)]);
            }
        }
    }
}
