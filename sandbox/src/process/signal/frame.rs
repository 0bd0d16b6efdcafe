//! The frame that a signal handler finds on its stack, and what `rt_sigreturn` reads back from it.
//!
//! ```text
//!   sp -> pretcode | ucontext (flags, link, stack, sigcontext, mask) | siginfo | ... | XSAVE area, 64-aligned | magic2
//!         8          304                                               128
//! ```
//! Sources: Linux arch/x86/include/uapi/asm/{sigcontext,ucontext}.h and arch/x86/kernel/signal_64.c for the order;
//! x86-64 psABI §3.2.2 for the red zone; Intel SDM vol. 1 §13.4 for the XSAVE area.
//!
//! Everything that comes back is hostile: registers are taken as they are because ring 3 could load them itself, flags
//! are masked to what ring 3 may set, the XSAVE area is checked before KVM sees it.

use kvm_bindings::kvm_regs;

use super::{AltStack, Info, SigSet};
use crate::kvm::entry::PROGRAM_FLAGS;

/// Bytes below the stack pointer that a leaf function may use.
const RED_ZONE: u64 = 128;
const UCONTEXT: usize = 8;
const SIGCONTEXT: usize = UCONTEXT + 40;
const MASK: usize = SIGCONTEXT + 256;
const INFO: usize = MASK + 8;
/// pretcode, ucontext and siginfo.
pub(crate) const FRAME_BYTES: usize = INFO + Info::BYTES;

/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Where software may write in the legacy area of XSAVE (bytes 464 to 511).
const SOFTWARE: usize = 464;
/// The header behind the legacy area: XSTATE_BV, XCOMP_BV, reserved.
const HEADER: usize = 512;
const LEGACY_AND_HEADER: usize = 576;

/// DF, TF, RF and AC are off in a handler.
const HANDLER_CLEARS: u64 = 1 << 10 | 1 << 8 | 1 << 16 | 1 << 18;
const ALWAYS_SET: u64 = 1 << 1;
const INTERRUPTS: u64 = 1 << 9;
const CS: u16 = 0x33;
const SS: u16 = 0x2b;

/// What the handler is told beside the registers.
pub(crate) struct Cause<'a> {
    pub(crate) info: &'a Info,
    /// The mask to restore on return.
    pub(crate) mask: SigSet,
    pub(crate) handler: u64,
    /// `SA_RESTORER`'s function, to which the handler returns.
    pub(crate) restorer: u64,
    /// The thread's alternate stack; `use_alternate` says that the handler runs on it.
    pub(crate) stack: AltStack,
    pub(crate) use_alternate: bool,
    /// Exception vector, its error code and CR2; zeroes for signals that were sent.
    pub(crate) exception: (u64, u64, u64),
}

/// The frame to be written and the registers with which the handler starts.
pub(crate) struct Frame {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) regs: kvm_regs,
}

/// Builds the frame; `None` where it would lie below address 0. Whether there is memory at `address` is found out by
/// writing it.
pub(crate) fn build(regs: &kvm_regs, xsave: &[u8], features: u64, cause: &Cause<'_>) -> Option<Frame> {
    let top = match cause.use_alternate {
        true => cause.stack.pointer.checked_add(cause.stack.bytes)?,
        false => regs.rsp.checked_sub(RED_ZONE)?,
    };
    let state_bytes = xsave.len() as u64;
    let state = top.checked_sub(state_bytes + 4)? & !63;
    let address = (state.checked_sub(FRAME_BYTES as u64)? & !15).checked_sub(8)?;

    let mut bytes = vec![0; (state - address) as usize];
    put(&mut bytes, 0, cause.restorer);
    put(&mut bytes, UCONTEXT, UC_FLAGS);
    put(&mut bytes, UCONTEXT + 16, cause.stack.pointer);
    put(&mut bytes, UCONTEXT + 24, u64::from(cause.stack.flags));
    put(&mut bytes, UCONTEXT + 32, cause.stack.bytes);
    let words = sigcontext(regs, cause, state);
    words.iter().enumerate().for_each(|(i, word)| put(&mut bytes, SIGCONTEXT + i * 8, *word));
    put(&mut bytes, MASK, cause.mask.0);
    bytes[INFO..FRAME_BYTES].copy_from_slice(&cause.info.bytes());
    append_state(&mut bytes, xsave, features);

    let uc = address + UCONTEXT as u64;
    let regs = kvm_regs {
        rip: cause.handler,
        rsp: address,
        rdi: u64::from(cause.info.signal.number()),
        rsi: address + INFO as u64,
        rdx: uc,
        rax: 0,
        rflags: regs.rflags & !HANDLER_CLEARS,
        ..*regs
    };
    Some(Frame { address, bytes, regs })
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn sigcontext(r: &kvm_regs, cause: &Cause<'_>, state: u64) -> [u64; 24] {
    let (vector, error, cr2) = cause.exception;
    let segments = u64::from(CS) | u64::from(SS) << 48;
    [
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rdi,
        r.rsi,
        r.rbp,
        r.rbx,
        r.rdx,
        r.rax,
        r.rcx,
        r.rsp,
        r.rip,
        r.rflags & (PROGRAM_FLAGS | ALWAYS_SET | INTERRUPTS),
        segments,
        error,
        vector,
        cause.mask.0,
        cr2,
        state,
    ]
}

fn append_state(bytes: &mut Vec<u8>, xsave: &[u8], features: u64) {
    let at = bytes.len();
    bytes.extend_from_slice(xsave);
    let mut software = [0; 48];
    software[..4].copy_from_slice(&MAGIC1.to_le_bytes());
    software[4..8].copy_from_slice(&(xsave.len() as u32 + 4).to_le_bytes());
    software[8..16].copy_from_slice(&features.to_le_bytes());
    software[16..20].copy_from_slice(&(xsave.len() as u32).to_le_bytes());
    if xsave.len() >= LEGACY_AND_HEADER {
        bytes[at + SOFTWARE..at + HEADER].copy_from_slice(&software);
    }
    bytes.extend_from_slice(&MAGIC2.to_le_bytes());
}

/// What `rt_sigreturn` puts back.
pub(crate) struct Returned {
    pub(crate) regs: kvm_regs,
    pub(crate) mask: SigSet,
    /// `uc_stack`: pointer, flags, bytes.
    pub(crate) stack: AltStack,
    /// Where the XSAVE area lies; 0: there is none and the registers go to their initial state.
    pub(crate) state: u64,
}

/// Reads the frame at the stack pointer of `rt_sigreturn`; `bytes` begins at pretcode + 8, which is where the stack
/// pointer stands after the handler's `ret`.
pub(crate) fn parse(bytes: &[u8; FRAME_BYTES - 8]) -> Returned {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at - 8 + i]));
    let at = |i: usize| word(SIGCONTEXT + i * 8);
    let regs = kvm_regs {
        r8: at(0),
        r9: at(1),
        r10: at(2),
        r11: at(3),
        r12: at(4),
        r13: at(5),
        r14: at(6),
        r15: at(7),
        rdi: at(8),
        rsi: at(9),
        rbp: at(10),
        rbx: at(11),
        rdx: at(12),
        rax: at(13),
        rcx: at(14),
        rsp: at(15),
        rip: at(16),
        rflags: at(17) & PROGRAM_FLAGS | ALWAYS_SET,
    };
    let stack = AltStack {
        pointer: word(UCONTEXT + 16),
        flags: word(UCONTEXT + 24) as u32,
        bytes: word(UCONTEXT + 32),
    };
    Returned { regs, mask: SigSet(word(MASK)).without_unblockable(), stack, state: at(23) }
}

/// Makes an XSAVE area from a program's memory one that KVM takes: features that the vCPU has, the standard form, no
/// reserved bits. `false`: it cannot be mended.
pub(crate) fn sanitize_state(state: &mut [u8], features: u64, mxcsr_mask: u32) -> bool {
    if state.len() < LEGACY_AND_HEADER {
        return false;
    }
    let magic = u32::from_le_bytes(std::array::from_fn(|i| state[SOFTWARE + i]));
    if magic == MAGIC1 {
        let kept = u64::from_le_bytes(std::array::from_fn(|i| state[HEADER + i])) & features;
        put(state, HEADER, kept);
    } else {
        // Only the legacy area is meant.
        put(state, HEADER, features & 3);
    }
    state[HEADER + 8..LEGACY_AND_HEADER].fill(0);
    state[SOFTWARE..HEADER].fill(0);
    let mxcsr = u32::from_le_bytes(std::array::from_fn(|i| state[24 + i])) & mxcsr_mask;
    state[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Detail, Signal};
    use super::*;

    fn cause(info: &Info) -> Cause<'_> {
        Cause {
            info,
            mask: SigSet(0x55),
            handler: 0x40_1000,
            restorer: 0x40_2000,
            stack: AltStack { pointer: 0x9000, flags: 0, bytes: 0x4000 },
            use_alternate: false,
            exception: (14, 6, 0xdead),
        }
    }

    fn info() -> Info {
        Info { signal: Signal::new(11).unwrap(), code: 1, detail: Detail::Fault { address: 0xdead } }
    }

    fn regs() -> kvm_regs {
        kvm_regs {
            rsp: 0x7fff_0123,
            rip: 0x1234,
            rax: 1,
            rbx: 2,
            r15: 3,
            rflags: 0x246,
            ..Default::default()
        }
    }

    #[test]
    fn what_a_handler_leaves_alone_comes_back() {
        let info = info();
        let frame = build(&regs(), &[0; 832], 7, &cause(&info)).unwrap();
        let back = parse(frame.bytes[8..FRAME_BYTES].try_into().unwrap());
        assert_eq!(back.regs, kvm_regs { rflags: 0x46, ..regs() });
        assert_eq!(back.mask, SigSet(0x55));
        assert_eq!((back.stack.pointer, back.stack.bytes), (0x9000, 0x4000));
        assert_eq!(back.state % 64, 0);
        assert_eq!(back.state - frame.address + 832 + 4, frame.bytes.len() as u64);
    }

    #[test]
    fn the_handler_starts_as_the_abi_says() {
        let info = info();
        let frame = build(&regs(), &[0; 832], 7, &cause(&info)).unwrap();
        assert_eq!((frame.regs.rsp + 8) % 16, 0, "as after a call");
        assert!(frame.address + frame.bytes.len() as u64 <= regs().rsp - RED_ZONE);
        assert_eq!(frame.regs.rdi, 11);
        assert_eq!(frame.bytes[..8], 0x40_2000u64.to_le_bytes());
    }

    #[test]
    fn the_alternate_stack_is_used_from_its_top() {
        let info = info();
        let frame = build(&regs(), &[0; 832], 7, &Cause { use_alternate: true, ..cause(&info) }).unwrap();
        assert!(frame.address >= 0x9000 && frame.address + frame.bytes.len() as u64 <= 0xd000);
    }

    #[test]
    fn a_stack_pointer_near_zero_is_refused() {
        let info = info();
        assert!(build(&kvm_regs { rsp: 100, ..regs() }, &[0; 832], 7, &cause(&info)).is_none());
    }

    proptest! {
        #[test]
        fn no_frame_gives_the_program_more_than_ring_3_has(bytes in prop::collection::vec(any::<u8>(), FRAME_BYTES - 8)) {
            let back = parse(bytes.as_slice().try_into().unwrap());
            prop_assert_eq!(back.regs.rflags & (3 << 12 | 1 << 9 | 1 << 14 | 1 << 17), 0, "IOPL, IF, NT, VM");
            prop_assert_eq!(back.mask.0 & (1 << 8 | 1 << 18), 0);
        }

        #[test]
        fn no_state_reaches_kvm_with_reserved_bits(mut state in prop::collection::vec(any::<u8>(), 576..900)) {
            prop_assert!(sanitize_state(&mut state, 7, 0xffff));
            prop_assert!(state[HEADER] <= 7);
            prop_assert!(state[HEADER + 1..LEGACY_AND_HEADER].iter().all(|b| *b == 0));
            prop_assert_eq!(&state[26..28], &[0, 0]);
        }
    }
}
