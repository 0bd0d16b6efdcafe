//! Every fixed guest address of the process engine's VMs, and why it is where it is.
//!
//! ```text
//! guest-physical (GPA); HVA = base + GPA in one reserved stretch of host addresses
//! 0x0000_0000  page 0        descriptors: GDT, TSS, IDT                     ┐
//! 0x0000_1000  page 1        fault stubs, ring 0                            │ system area,
//! 0x0000_2000  page 2        system-call stub, the only page users may run  │ SYSTEM_SIZE
//! 0x0000_3000  page 3        stack of ring 0 (one frame at a time)          │
//! 0x0000_4000  page 4        the call stub's scratch, ring 3 may write it   │
//! 0x0000_5000  pages 5, 6    answers to calls, ring 3 may read them         │
//! 0x0000_7000  pages 7..     page tables, the PML4 first                    ┘
//! 0x0020_0000  granules of 16 MiB, given to stretches of virtual addresses in the order of first use
//!
//! guest-virtual
//! 0x0000_0000_0001_0000  lowest mapping (vm.mmap_min_addr)
//! 0x0000_0000_0040_0000  programs that are linked for a fixed address, their heap behind them
//! 0x0000_5500_xxxx_xxxx  position-independent programs, their heap behind them        (randomised)
//! 0x0000_7exx_xxxx_xxxx  mappings, from below the stack's limit downwards             (randomised)
//! 0x0000_7exx_xxxx_xxxx  stack, in the same granule: a small program touches two granules in all
//! 0x0000_7fff_fff0_0000  the stub's scratch and the answers: the three pages below that no program can map
//! 0x0000_7fff_ffff_f000  the system-call stub, above everything that a program can map
//! 0xffff_8000_0000_0000  system area: outside of everything that a program can ask mmap for
//! ```

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of a large page: what one entry of a page directory covers.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// GDT, TSS and IDT: together under a page, never written by the guest (the CPU's accessed and busy bits are preset).
pub(crate) const DESCRIPTORS_GPA: u64 = 0;
/// The TSS in the descriptors' page, with its I/O permission map, behind the GDT.
pub(crate) const TSS_OFFSET: u64 = 0x100;
/// The IDT in the descriptors' page: 32 vectors of 16 bytes.
pub(crate) const IDT_OFFSET: u64 = 0x200;
/// The stubs to which the IDT points.
pub(crate) const FAULT_STUBS_GPA: u64 = 0x1000;
/// Bytes of one stub, so that the vector can be told from the instruction pointer.
pub(crate) const FAULT_STUB_SIZE: u64 = 16;
/// The stub to which LSTAR points. User pages may run it: a software KVM does not change rings on `syscall`.
pub(crate) const CALL_STUB_GPA: u64 = 0x2000;
/// Ring 0's stack: one exception frame, read by the VMM at once.
pub(crate) const RING0_STACK_GPA: u64 = 0x3000;
/// Where the system-call stub keeps registers while it answers a call by itself.
pub(crate) const SCRATCH_GPA: u64 = 0x4000;
/// What it answers calls from ([`answers`](super::answers)).
pub(crate) const ANSWERS_GPA: u64 = 0x5000;
/// Bytes of the answers.
pub(crate) const ANSWERS_SIZE: u64 = 2 * PAGE;
/// The PML4; the other tables follow.
pub(crate) const TABLES_GPA: u64 = 0x7000;
/// The system area: room for about 500 tables, each covering 2 MiB of small pages.
pub(crate) const SYSTEM_SIZE: u64 = LARGE_PAGE;

/// Where the system area stands in every guest's virtual addresses.
pub(crate) const SYSTEM_GVA: u64 = 0xffff_8000_0000_0000;

/// The unit in which virtual addresses get guest-physical ones: small enough that a small program's memslot costs little
/// (2.5 KiB of kernel memory per MiB), large enough that a library lies in one piece.
pub(crate) const GRANULE: u64 = 16 << 20;
/// The first memslot holds the system area and this many granules: image, heap, stack and libraries of a small program.
pub(crate) const FIRST_GRANULES: u64 = 2;

/// Where the system-call stub stands: the one page of the lower half that no program can map, directly above
/// [`USER_END`]. (A software KVM keeps the upper half for itself where ring 3 runs natively: a fetch there faults.)
pub(crate) const CALL_STUB_GVA: u64 = 0x7fff_ffff_f000;

/// Where the stub's scratch stands, and behind it the answers: in reach of its instructions, in the lower half for the reason
/// above, far from the addresses that programs and their tests try. Nothing can be mapped up to [`STUB_DATA_END`].
pub(crate) const SCRATCH_GVA: u64 = 0x7fff_fff0_0000;
/// Where the answers stand.
pub(crate) const ANSWERS_GVA: u64 = SCRATCH_GVA + PAGE;
/// First address behind them.
pub(crate) const STUB_DATA_END: u64 = ANSWERS_GVA + ANSWERS_SIZE;

/// The port to which the system-call stub writes, four bytes wide: the only ones that ring 3 may use.
pub(crate) const CALL_PORT: u16 = 0x80;
/// The port to which fault stubs write.
pub(crate) const FAULT_PORT: u16 = 0x90;

/// Lowest address that may be mapped: Linux's default for `vm.mmap_min_addr`.
pub(crate) const USER_START: u64 = 0x1_0000;
/// First address that may not be mapped: Linux's TASK_SIZE_MAX.
pub(crate) const USER_END: u64 = 0x7fff_ffff_f000;
/// Where position-independent programs begin, before randomisation.
pub(crate) const PIE_BASE: u64 = 0x5500_0000_0000;
/// Where stack and mappings begin, before randomisation.
pub(crate) const STACK_BASE: u64 = 0x7e00_0000_0000;
/// Randomised granules above [`PIE_BASE`] and [`STACK_BASE`]: 16 bits, 1 TiB.
pub(crate) const RANDOM_GRANULES: u64 = 1 << 16;
/// The main stack's size, Linux's default for RLIMIT_STACK.
pub(crate) const STACK_SIZE: u64 = 8 << 20;
/// Kept free below the main stack, so that running over its end is a fault.
pub(crate) const STACK_GUARD: u64 = 1 << 20;
