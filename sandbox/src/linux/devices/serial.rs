//! COM1: the kernel's console, to a log. What a panicking kernel says is kept for the report.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::linux::bus::BusDevice;
use crate::linux::end::Ending;
use crate::linux::snapshot::Uart;

/// Where the console goes.
pub(crate) type Log = Box<dyn Write + Send>;

/// The 8250.
pub(crate) struct Com1(Serial<Interrupt, NoEvents, Watched>);

impl Com1 {
    /// Writes to `log`, raises its interrupt by `interrupt` and tells panics to `ending`; as `state` says, or as after
    /// power-on. `None` where the state is none of a UART.
    pub(crate) fn new(
        interrupt: EventFd,
        log: Log,
        ending: Arc<Ending>,
        state: Option<Uart>,
    ) -> Option<Self> {
        let log = Watched { log, ending, line: Vec::new() };
        let state = state.map(SerialState::from).unwrap_or_default();
        Serial::from_state(&state, Interrupt(interrupt), NoEvents, log).ok().map(Self)
    }

    /// Its registers.
    pub(crate) fn state(&self) -> Uart {
        self.0.state().into()
    }
}

impl BusDevice for Com1 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are a byte wide.
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.0.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            // A log that cannot be written must not stop the guest, nor an interrupt that is already pending.
            let _ = self.0.write(offset as u8, *byte);
        }
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// How a kernel begins its last words.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// Longest line that is looked at.
const LONGEST_LINE: usize = 512;

/// A log whose lines are searched for a panic.
struct Watched {
    log: Log,
    ending: Arc<Ending>,
    line: Vec<u8>,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            match byte {
                b'\n' => self.end_of_line(),
                _ if self.line.len() < LONGEST_LINE => self.line.push(*byte),
                _ => {}
            }
        }
        self.log.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

impl Watched {
    fn end_of_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(at) = line.windows(PANIC.len()).position(|window| window == PANIC) {
            let message = String::from_utf8_lossy(&line[at + PANIC.len()..]);
            self.ending.note_panic(message.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::end::End;

    #[test]
    fn a_panic_on_the_console_is_told() {
        let ending = Arc::new(Ending::default());
        let mut log = Watched { log: Box::new(io::sink()), ending: ending.clone(), line: Vec::new() };
        log.write_all(b"hello\n[ 1.0] Kernel panic - not syn").unwrap();
        log.write_all(b"cing: no init\r\n").unwrap();
        ending.note(End::Reset);
        assert_eq!(ending.wait(None), Some(End::Panic("no init".into())));
    }

    #[test]
    fn a_guest_that_writes_no_line_ends_costs_no_memory() {
        let ending = Arc::new(Ending::default());
        let mut log = Watched { log: Box::new(io::sink()), ending, line: Vec::new() };
        log.write_all(&[b'x'; 100_000]).unwrap();
        assert_eq!(log.line.len(), LONGEST_LINE);
    }
}
