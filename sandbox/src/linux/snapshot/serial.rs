//! The UART's registers.

use novum_snapshot::State;
use serde::{Deserialize, Serialize};
use vm_superio::SerialState;

/// The section's owner.
pub(crate) const OWNER: &str = "com1";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uart {
    divisor: (u8, u8),
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl State for Uart {
    const KIND: &'static str = "serial";
    const VERSION: u32 = 1;
}

impl From<SerialState> for Uart {
    fn from(state: SerialState) -> Self {
        Self {
            divisor: (state.baud_divisor_low, state.baud_divisor_high),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }
}

impl From<Uart> for SerialState {
    fn from(uart: Uart) -> Self {
        Self {
            baud_divisor_low: uart.divisor.0,
            baud_divisor_high: uart.divisor.1,
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            in_buffer: uart.received,
        }
    }
}
