//! What a program writes to its reply and its log, gathered in the scratch until its next exit: a write that is taken whole whatever it
//! says needs no exit of its own.
//!
//! ```text
//! 0x38  bytes that are used   0x48  the same before the last write   0x140  records: descriptor, length, the bytes, filled up to 8
//! ```
//! The VMM says of which descriptors writes may be gathered, at each exit, and serves the gathered ones at the next before all else, as
//! if they were made then. What the program puts there itself are writes like its others.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Register};

use super::{
    ANSWERS_GPA, Labels, RDI, RDX, Region, address_of, answer, at, finish, load, set_changed, store,
};
use crate::kvm::layout::{PAGE, SCRATCH_GPA, SCRATCH_GVA};

/// Scratch.
const USED: u64 = SCRATCH_GVA + 0x38;
const BEFORE: u64 = SCRATCH_GVA + 0x48;
const RECORDS: u64 = SCRATCH_GVA + 0x140;
const ROOM: u64 = SCRATCH_GVA + PAGE - RECORDS;
/// Answers: a bit for each of the descriptors 0 to 2.
const GATHERED: u64 = 0x28;
/// Bytes of a record before its data.
const HEAD: u64 = 8;
/// Longest write that is gathered.
pub(crate) const LONGEST: u64 = 1024;
/// With more than this there is no room for another.
const FULL: u64 = ROOM - HEAD - LONGEST;

const _: () = assert!(FULL + HEAD + LONGEST <= ROOM && RECORDS > super::STACK);

fn gpa(scratch: u64) -> u64 {
    SCRATCH_GPA + (scratch - SCRATCH_GVA)
}

/// From now on writes to these descriptors (a bit for each) are gathered.
pub(crate) fn gather(region: &Region, descriptors: u64) {
    set_changed(region, ANSWERS_GPA + GATHERED, descriptors);
}

/// The writes that were gathered since the last time: descriptors with their bytes.
pub(crate) fn take_gathered(region: &Region) -> Vec<(i32, Vec<u8>)> {
    let used = region.word(gpa(USED));
    if used == 0 {
        return Vec::new();
    }
    region.set_word(gpa(USED), 0);
    let mut records = vec![0; used.min(ROOM) as usize];
    let got = region.read(gpa(RECORDS), &mut records);
    records.truncate(got);
    split(&records)
}

/// Records that cannot be are left out with all that follow.
fn split(mut records: &[u8]) -> Vec<(i32, Vec<u8>)> {
    let mut writes = Vec::new();
    while let Some((head, rest)) = records.split_first_chunk::<{ HEAD as usize }>() {
        let [fd, len] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| head[at + i])));
        let (fd, len) = (fd as i32, len as usize);
        let Some(bytes) = rest.get(..len).filter(|_| len > 0) else { break };
        writes.push((fd, bytes.to_vec()));
        records = rest.get(len.next_multiple_of(HEAD as usize)..).unwrap_or_default();
    }
    writes
}

/// Takes the last write back: the program was stopped right after it, and makes it in full.
pub(super) fn take_back(region: &Region) {
    region.set_word(gpa(USED), region.word(gpa(BEFORE)));
}

/// `write(edi, rsi, rdx)`. `written` is where the write has been gathered, and the call not returned yet.
pub(super) fn write(
    a: &mut CodeAssembler,
    [entry, written]: [&mut CodeLabel; 2],
    to: Labels,
) -> Result<(), IcedError> {
    const END: i32 = 0x7fff;
    let mut next = a.create_label();
    a.set_label(entry)?;
    // Descriptors are looked at whole, as are lengths.
    a.cmp(rdi, 2)?;
    a.ja(to.leave)?;
    load(a, Register::RAX, answer(GATHERED))?;
    a.bt(eax, edi)?;
    a.jnc(to.leave)?;
    a.lea(rax, ptr(rdx - 1))?;
    a.cmp(rax, LONGEST as i32)?;
    a.jae(to.leave)?;
    // A buffer outside of what a program can have is for the VMM to refuse.
    a.lea(rax, ptr(rsi + rdx))?;
    a.shr(rax, 32)?;
    a.cmp(rax, END)?;
    a.jae(to.leave)?;
    load(a, Register::RAX, USED)?;
    a.cmp(rax, FULL as i32)?;
    a.ja(to.leave)?;
    store(a, BEFORE, Register::RAX)?;
    address_of(a, Register::RDI, RECORDS)?;
    a.add(rdi, rax)?;
    load(a, Register::RAX, RDI)?;
    a.mov(dword_ptr(rdi), eax)?;
    a.mov(dword_ptr(rdi + 4), edx)?;
    a.set_label(&mut next)?;
    a.mov(al, byte_ptr(rsi + rdx - 1))?;
    a.mov(byte_ptr(rdi + rdx + (HEAD as i32 - 1)), al)?;
    a.dec(rdx)?;
    a.jnz(next)?;
    load(a, Register::RDX, RDX)?;
    a.add(rdx, 2 * HEAD as i32 - 1)?;
    a.and(rdx, -(HEAD as i32))?;
    a.add_instruction(iced_x86::Instruction::with2(Code::Add_rm64_r64, at(USED), Register::RDX)?)?;
    a.set_label(written)?;
    load(a, Register::RAX, RDX)?;
    finish(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fd: i32, bytes: &[u8]) -> Vec<u8> {
        let mut record = [fd.to_le_bytes(), (bytes.len() as i32).to_le_bytes()].concat();
        record.extend(bytes);
        record.resize(record.len().next_multiple_of(8), 0);
        record
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let records = [record(2, b"log"), record(1, b"12345678"), record(1, b"x")].concat();
        let writes = [(2, b"log".to_vec()), (1, b"12345678".to_vec()), (1, b"x".to_vec())];
        assert_eq!(split(&records), writes);
    }

    #[test]
    fn records_that_cannot_be_are_left_out() {
        let good = record(1, b"good");
        for bad in [&[1, 0, 0][..], &record(1, b""), &[1, 0, 0, 0, 255, 255, 255, 255, 7, 7]] {
            assert_eq!(split(&[&good, bad].concat()), [(1, b"good".to_vec())]);
        }
        assert_eq!(split(&[]), []);
    }
}
