//! Transports are saved and restored, and what does not fit is refused.

use proptest::prelude::*;

use super::*;
use crate::linux::Device;
use crate::linux::virtio::testing::{Driver, OWNER, Piece, Saved, golden};

fn rng() -> Driver {
    Driver::start(Device::Rng.make(), 0)
}

fn asked(driver: &mut Driver) {
    assert!(driver.ask(&[Piece::In(64)]).iter().any(|byte| *byte != 0));
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_was() {
    let mut driver = rng();
    (0..70).for_each(|_| asked(&mut driver));
    let saved = driver.save();
    // What is asked in between is answered afterwards, once.
    let places = driver.offer(0, &[Piece::In(64)]);
    driver.restore(Device::Rng.make(), &saved).unwrap();
    assert_eq!((driver.answer(0), places.len()), (64, 1));
    (0..70).for_each(|_| asked(&mut driver));
    let again = driver.save();
    let state: TransportState = take(&again.snapshot, OWNER).unwrap();
    assert!(state.started);
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (141, 141));
}

#[test]
fn registers_of_a_driver_that_has_only_begun_are_kept() {
    let mut driver = Driver::connect(Device::Rng.make());
    driver.poke(0x70, &3u32.to_le_bytes());
    driver.poke(0x14, &1u32.to_le_bytes());
    let saved = driver.save();
    driver.restore(Device::Rng.make(), &saved).unwrap();
    let mut read = |at| {
        let mut word = [0; 4];
        driver.peek(at, &mut word);
        u32::from_le_bytes(word)
    };
    assert_eq!((read(0x70), read(0x10)), (3, 1), "status, upper half of the features");
    driver.initialise(1 << 32);
    asked(&mut driver);
}

#[test]
fn another_device_does_not_take_it() {
    let mut driver = rng();
    let saved = driver.save();
    let error =
        driver.restore(Device::Balloon(crate::linux::balloon::Balloon::new().unwrap()).make(), &saved);
    assert!(error.unwrap_err().to_string().contains("virtio's number 4, not 5"));
}

#[test]
fn a_device_at_work_is_not_saved() {
    let mut driver = rng();
    let error = Saved::new(|to| driver.transport().save(OWNER, to)).err().unwrap();
    assert!(matches!(error, StateError::Running { .. }));
}

#[test]
fn registers_are_written_as_they_always_were() {
    let queue = QueueState {
        size: 64,
        ready: true,
        next_avail: 300,
        next_used: 299,
        event_idx: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
    };
    let state = TransportState {
        device_id: 4,
        started: true,
        status: 15,
        queue: 1,
        device_features_half: 1,
        driver_features_half: 2,
        driver_features: 1 << 32,
        interrupt_status: 3,
        generation: 5,
        queues: vec![queue],
    };
    golden(&state, "virtio-mmio 1 04010f01010280808080100305014001ac02ab0201802080408060");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn damaged_registers_are_refused_or_harmless(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6), cut in any::<u8>()
    ) {
        let mut driver = rng();
        asked(&mut driver);
        let saved = driver.save().changed::<TransportState>(|bytes| {
            for (at, value) in &changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            if cut < 20 {
                bytes.truncate(cut.into());
            }
        });
        // Whatever comes of it: an error, or a device that can be asked and stopped.
        let _ = driver.restore(Device::Rng.make(), &saved);
        driver.offer(0, &[Piece::In(64)]);
        driver.poke(0x70, &0u32.to_le_bytes());
        driver.initialise(1 << 32);
    }
}
