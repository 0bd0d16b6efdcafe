//! The ports by which a guest ends: exit code, ACPI sleep and reset, the keyboard controller's reset line.

use std::sync::Arc;

use crate::linux::bus::BusDevice;
use crate::linux::end::{End, Ending};
use crate::linux::layout::{EXIT_PORT, I8042_COMMAND_PORT, RESET_PORT, SLEEP_CONTROL_PORT};

/// ACPI: sleep type in bits 2 to 4, sleep enable in bit 5.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
/// `\_S5` of our DSDT.
pub(crate) const S5_TYPE: u8 = 5;
/// What the FADT says to write to the reset register.
pub(crate) const RESET_VALUE: u8 = 1;
/// The keyboard controller's command that pulls the reset line.
const PULSE_RESET: u8 = 0xfe;

/// The ports from [`SLEEP_CONTROL_PORT`] to [`EXIT_PORT`].
pub(crate) struct Power(pub(crate) Arc<Ending>);

/// How many ports it has.
pub(crate) const POWER_PORTS: u64 = (EXIT_PORT - SLEEP_CONTROL_PORT) as u64 + 1;

impl BusDevice for Power {
    /// The sleep status has no bits for a machine that never slept.
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first().copied() else { return };
        let port = SLEEP_CONTROL_PORT + offset as u16;
        match port {
            SLEEP_CONTROL_PORT if value == SLEEP_ENABLE | S5_TYPE << SLEEP_TYPE_SHIFT => {
                self.0.note(End::PowerOff)
            }
            RESET_PORT if value == RESET_VALUE => self.0.note(End::Reset),
            EXIT_PORT => self.0.note(End::Exit(value)),
            _ => {}
        }
    }
}

/// The keyboard controller, as far as resetting goes: it is always ready and has nothing to say.
pub(crate) struct I8042(pub(crate) Arc<Ending>);

/// First of its ports: data, then (4 further) command.
pub(crate) const I8042_DATA_PORT: u16 = 0x60;
/// How many ports from there.
pub(crate) const I8042_PORTS: u64 = 5;

impl BusDevice for I8042 {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let command = I8042_DATA_PORT + offset as u16 == I8042_COMMAND_PORT;
        if command && data.first() == Some(&PULSE_RESET) {
            self.0.note(End::Reset);
        }
    }
}

/// The clock chip: reads 0, so that nothing waits for its update bit. The guest has kvm-clock.
pub(crate) struct NoClock;

/// Its index port; the data port follows.
pub(crate) const CLOCK_PORT: u16 = 0x70;

impl BusDevice for NoClock {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&mut self, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_after(port: u16, value: u8) -> Option<End> {
        let ending = Arc::new(Ending::default());
        Power(ending.clone()).write(u64::from(port - SLEEP_CONTROL_PORT), &[value]);
        ending.wait(Some(std::time::Instant::now()))
    }

    #[test]
    fn each_port_ends_the_machine_its_own_way() {
        assert_eq!(end_after(EXIT_PORT, 7), Some(End::Exit(7)));
        assert_eq!(end_after(SLEEP_CONTROL_PORT, 0x34), Some(End::PowerOff));
        assert_eq!(end_after(RESET_PORT, 1), Some(End::Reset));
    }

    #[test]
    fn other_values_do_not() {
        assert_eq!(end_after(SLEEP_CONTROL_PORT, 5 << 2), None, "sleep enable is not set");
        assert_eq!(end_after(RESET_PORT, 0), None);
        let ending = Arc::new(Ending::default());
        I8042(ending.clone()).write(0, &[PULSE_RESET]);
        assert!(!ending.is_over(), "that was the data port");
        I8042(ending.clone()).write(4, &[PULSE_RESET]);
        assert!(ending.is_over());
    }
}
