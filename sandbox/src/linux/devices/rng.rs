//! virtio-rng: the host's random bytes. Source: VIRTIO 1.2 §5.4.

use std::io::{self, Write};

use virtio_queue::Queue;

use crate::linux::memory::Memory;
use crate::linux::virtio::{Activation, Chain, Handler, VirtioDevice, Worker};

const DEVICE_ID: u32 = 4;
/// Most bytes for one request: more than a driver asks for, little enough to make up at once.
const MOST_BYTES: usize = 4096;

/// The device.
#[derive(Default)]
pub(crate) struct Rng {
    worker: Option<Worker>,
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker = Some(Worker::start("virtio-rng", activation.rings, Fill)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.worker.take().map(Worker::stop).unwrap_or_default()
    }
}

struct Fill;

impl Handler for Fill {
    fn handle(&mut self, _: usize, chain: Chain, memory: &Memory) -> u32 {
        let Ok(mut writer) = chain.writer(memory) else { return 0 };
        let mut bytes = vec![0; writer.available_bytes().min(MOST_BYTES)];
        let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
        writer.write(&bytes[..got]).map_or(0, |written| written as u32)
    }
}
