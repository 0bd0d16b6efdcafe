//! What the generated files under `/proc` tell about the process.

use std::time::Duration;

use super::calls::credentials::{Credentials, Ids};
use super::calls::identity;
use super::calls::limits::ResourceLimits;
use super::files::{MemoryView, ProcessView};
use super::load::stack::Stack;
use super::memory::AddressSpace;
use super::thread::Threads;

/// The parts of a process from which they are made.
pub(crate) struct View<'a> {
    pub(crate) memory: &'a AddressSpace,
    pub(crate) threads: &'a Threads,
    pub(crate) stack: &'a Stack,
    pub(crate) uptime: Duration,
    pub(crate) credentials: &'a Credentials,
    pub(crate) limits: &'a ResourceLimits,
    /// Names this sandbox's run.
    pub(crate) generation: &'a str,
}

impl View<'_> {
    /// What lies in the program's memory at `start..end`; nothing where it has unmapped that.
    fn range(&self, (start, end): (u64, u64)) -> Vec<u8> {
        /// More than the loader ever puts there.
        const MOST: u64 = 4 << 20;
        let len = end.saturating_sub(start).min(MOST);
        self.memory.read_vec(start, len as usize).unwrap_or_default()
    }
}

impl ProcessView for View<'_> {
    fn pid(&self) -> u32 {
        identity::PID as u32
    }

    fn tid(&self) -> u32 {
        self.threads.current().id
    }

    fn threads(&self) -> Vec<u32> {
        self.threads.iter().map(|thread| thread.id).collect()
    }

    fn comm(&self, tid: u32) -> Vec<u8> {
        let thread = self.threads.iter().find(|thread| thread.id == tid);
        let name = thread.unwrap_or_else(|| self.threads.current()).name;
        name.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    fn maps(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (start, vma) in self.memory.vmas().iter() {
            let bit = |on, letter| if on { letter } else { '-' };
            let shared = vma.file.as_ref().is_some_and(|part| part.shared);
            let (offset, name) = match &vma.file {
                Some(part) => (part.offset, part.file.name.as_str()),
                None => (0, vma.label),
            };
            let rights = [bit(vma.prot.read, 'r'), bit(vma.prot.write, 'w'), bit(vma.prot.exec, 'x')];
            let line = format!(
                "{start:08x}-{:08x} {}{} {offset:08x} 00:{:02x} {} ",
                vma.end,
                rights.iter().collect::<String>(),
                if shared { 's' } else { 'p' },
                if vma.file.is_some() { 0x1e } else { 0 },
                u32::from(vma.file.is_some()),
            );
            let line = if name.is_empty() { line } else { format!("{line:<73}{name}") };
            text.extend(line.trim_end().bytes());
            text.push(b'\n');
        }
        text
    }

    fn credentials(&self) -> ([u32; 3], [u32; 3], Vec<u32>) {
        let three = |ids: Ids| [ids.real, ids.effective, ids.saved];
        (three(self.credentials.user), three(self.credentials.group), self.credentials.groups.clone())
    }

    fn limits(&self) -> [[u64; 2]; 16] {
        self.limits.all()
    }

    fn cmdline(&self) -> Vec<u8> {
        self.range(self.stack.args)
    }

    fn environ(&self) -> Vec<u8> {
        self.range(self.stack.env)
    }

    fn auxv(&self) -> Vec<u8> {
        let (start, bytes) = self.stack.auxv;
        self.range((start, start + bytes))
    }

    fn memory(&self) -> MemoryView {
        let mapped = self.memory.vmas().iter().map(|(start, vma)| vma.end - start).sum();
        let data = self.memory.vmas().charged();
        let stack = self.memory.vmas().iter().filter(|(_, vma)| vma.grows_down);
        MemoryView {
            limit: self.memory.limit_bytes(),
            mapped,
            resident: self.memory.resident_bytes(),
            data,
            stack: stack.map(|(start, vma)| vma.end - start).sum(),
        }
    }

    fn cpu_time(&self) -> (Duration, Duration) {
        (self.uptime, Duration::ZERO)
    }

    fn cpus(&self) -> u32 {
        1
    }

    fn uptime(&self) -> Duration {
        self.uptime
    }

    fn release(&self) -> String {
        "6.1.0-novum".into()
    }

    fn hostname(&self) -> String {
        "novum".into()
    }

    fn boot_id(&self) -> String {
        self.generation.to_owned()
    }
}
