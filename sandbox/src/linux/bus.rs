//! Which device answers at an address or a port.

use std::sync::Arc;

use parking_lot::Mutex;

/// A device's registers. Called from any vCPU thread, one at a time; must not block.
pub(crate) trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8 in practice, anything in principle) at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes them.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Shared between the vCPU threads and whoever else feeds the device.
pub(crate) type Shared = Arc<Mutex<dyn BusDevice>>;

/// Devices by address. What nobody owns reads as ones, and writes to it are dropped, as on a PC.
#[derive(Default)]
pub(crate) struct Bus {
    /// (first address, length, device), sorted.
    ranges: Vec<(u64, u64, Shared)>,
}

impl Bus {
    /// Puts `device` at `start..start + length`.
    ///
    /// # Panics
    /// Where another is there: the layout is ours alone.
    pub(crate) fn insert(&mut self, start: u64, length: u64, device: Shared) {
        let free = self.ranges.iter().all(|(at, len, _)| start + length <= *at || at + len <= start);
        assert!(free, "two devices at {start:#x}");
        let index = self.ranges.partition_point(|(at, _, _)| *at < start);
        self.ranges.insert(index, (start, length, device));
    }

    /// A read by the guest.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.lock().read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write by the guest.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &Shared)> {
        let index = self.ranges.partition_point(|(at, _, _)| *at <= address).checked_sub(1)?;
        let (at, len, device) = &self.ranges[index];
        let offset = address - at;
        (offset.checked_add(length as u64)? <= *len).then_some((offset, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn an_access_reaches_its_device_only_as_a_whole() {
        let mut bus = Bus::default();
        bus.insert(0x20, 4, Arc::new(Mutex::new(Echo(0x40))));
        bus.insert(0x10, 4, Arc::new(Mutex::new(Echo(0x10))));
        let read = |at, length| {
            let mut data = vec![0; length];
            bus.read(at, &mut data);
            data
        };
        assert_eq!(read(0x11, 1), [0x11]);
        assert_eq!(read(0x22, 2), [0x42, 0x42]);
        assert_eq!(read(0x23, 2), [0xff, 0xff], "it leaves the device");
        assert_eq!(read(0x14, 1), [0xff]);
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(0x10, &[3]);
        assert_eq!(read(0x10, 1), [3]);
    }
}
