//! The stack as a program finds it at its first instruction.
//!
//! ```text
//!   sp -> argc | argv[0..argc] | NULL | envp... | NULL | auxv pairs... | AT_NULL | padding | random | strings | top
//! ```
//! Source: x86-64 psABI §3.4.1, "Initial Stack and Register State"; getauxval(3).

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

/// One `auxv` value that is not an address of this stack.
pub(crate) type Aux = (u64, u64);

/// What stands on the stack.
pub(crate) struct Contents<'a> {
    pub(crate) args: &'a [Vec<u8>],
    /// `NAME=value` strings.
    pub(crate) env: &'a [Vec<u8>],
    /// The program's path, for `AT_EXECFN`.
    pub(crate) path: &'a [u8],
    /// Fresh for every sandbox, for `AT_RANDOM`.
    pub(crate) random: [u8; 16],
    /// All the other entries; `AT_NULL` is added.
    pub(crate) aux: &'a [Aux],
}

/// The finished bytes and where they go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// The first byte's address and the initial stack pointer, a multiple of 16.
    pub(crate) pointer: u64,
    pub(crate) bytes: Vec<u8>,
    /// Where the random bytes stand, so that a snapshot's copies can be given fresh ones.
    pub(crate) random: u64,
    /// First and last-plus-one address of the argument strings, for `/proc/self/cmdline`.
    pub(crate) args: (u64, u64),
    /// The same of the environment's strings.
    pub(crate) env: (u64, u64),
    /// Where the auxiliary vector stands, and its length in bytes.
    pub(crate) auxv: (u64, u64),
}

impl State for Stack {
    const KIND: &'static str = "process-stack";
    const VERSION: u32 = 1;
}

const PLATFORM: &[u8] = b"x86_64\0";

/// Lays everything out below `top`; `None` where it needs more than `limit_bytes`.
pub(crate) fn build(top: u64, contents: &Contents<'_>, limit_bytes: u64) -> Option<Stack> {
    let mut strings = Strings::default();
    let args: Vec<u64> = contents.args.iter().map(|s| strings.add(s)).collect();
    let args_end = strings.bytes.len() as u64;
    let env: Vec<u64> = contents.env.iter().map(|s| strings.add(s)).collect();
    let env_end = strings.bytes.len() as u64;
    let path = strings.add(contents.path);
    let platform = strings.add_raw(PLATFORM);
    let random = strings.add_raw(&contents.random);

    let words = 1 + args.len() + 1 + env.len() + 1 + 2 * (contents.aux.len() + 4);
    let total = words as u64 * 8 + strings.bytes.len() as u64 + 16;
    if total > limit_bytes {
        return None;
    }
    let base = (top - strings.bytes.len() as u64) & !15;
    let pointer = (base - words as u64 * 8) & !15;
    let mut out = Vec::with_capacity((top - pointer) as usize);
    let mut put = |value: u64| out.extend_from_slice(&value.to_le_bytes());
    put(args.len() as u64);
    args.iter().for_each(|at| put(base + at));
    put(0);
    env.iter().for_each(|at| put(base + at));
    put(0);
    let own = [
        (libc::AT_EXECFN, base + path),
        (libc::AT_PLATFORM, base + platform),
        (libc::AT_RANDOM, base + random),
        (libc::AT_NULL, 0),
    ];
    for (tag, value) in contents.aux.iter().copied().chain(own) {
        put(tag);
        put(value);
    }
    let auxv_bytes = 16 * (contents.aux.len() as u64 + 4);
    let auxv = (pointer + words as u64 * 8 - auxv_bytes, auxv_bytes);
    out.resize((base - pointer) as usize, 0);
    out.extend_from_slice(&strings.bytes);
    Some(Stack {
        pointer,
        bytes: out,
        random: base + random,
        args: (base, base + args_end),
        env: (base + args_end, base + env_end),
        auxv,
    })
}

#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
}

impl Strings {
    fn add(&mut self, text: &[u8]) -> u64 {
        let at = self.add_raw(text);
        self.bytes.push(0);
        at
    }

    fn add_raw(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(stack: &Stack, at: u64) -> u64 {
        let at = (at - stack.pointer) as usize;
        u64::from_le_bytes(stack.bytes[at..at + 8].try_into().unwrap())
    }

    fn text(stack: &Stack, at: u64) -> &[u8] {
        stack.bytes[(at - stack.pointer) as usize..].split(|b| *b == 0).next().unwrap()
    }

    fn sample(args: usize) -> Stack {
        let args: Vec<Vec<u8>> = (0..args).map(|i| format!("arg{i}").into_bytes()).collect();
        let contents = Contents {
            args: &args,
            env: &[b"A=b".to_vec()],
            path: b"/bin/x",
            random: [7; 16],
            aux: &[(libc::AT_PAGESZ, 4096)],
        };
        build(0x7000_0000, &contents, 1 << 20).unwrap()
    }

    #[test]
    fn the_words_stand_where_the_abi_says() {
        for count in 0..5 {
            let stack = sample(count);
            assert_eq!(stack.pointer % 16, 0);
            assert!(stack.pointer + stack.bytes.len() as u64 <= 0x7000_0000);
            assert_eq!(word(&stack, stack.pointer), count as u64);
            let mut at = stack.pointer + 8;
            for i in 0..count {
                assert_eq!(text(&stack, word(&stack, at)), format!("arg{i}").as_bytes());
                at += 8;
            }
            assert_eq!(word(&stack, at), 0);
            assert_eq!(text(&stack, word(&stack, at + 8)), b"A=b");
            assert_eq!(word(&stack, at + 16), 0);
            assert_eq!(stack.auxv.0, at + 24);
            assert_eq!((word(&stack, at + 24), word(&stack, at + 32)), (libc::AT_PAGESZ, 4096));
            assert_eq!(
                (word(&stack, at + 40), text(&stack, word(&stack, at + 48))),
                (libc::AT_EXECFN, &b"/bin/x"[..])
            );
        }
    }

    #[test]
    fn random_bytes_can_be_found_again() {
        let stack = sample(1);
        let at = (stack.random - stack.pointer) as usize;
        assert_eq!(stack.bytes[at..at + 16], [7; 16]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let args = [vec![b'x'; 4096]];
        let contents = Contents { args: &args, env: &[], path: b"", random: [0; 16], aux: &[] };
        assert!(build(0x7000_0000, &contents, 4096).is_none());
    }
}
