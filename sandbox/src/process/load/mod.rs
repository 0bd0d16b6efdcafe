//! Loading a program as Linux does it: the ELF file's segments and the first stack.

pub(crate) mod elf;
pub(crate) mod stack;
