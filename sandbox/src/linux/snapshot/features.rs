//! What a snapshot demands of the processor that restores it: every feature bit of the guest's CPUID by its place, so
//! that a host with more will do and one with less is told what it lacks.

use kvm_bindings::kvm_cpuid_entry2;
use novum_snapshot::Host;

/// (leaf, subleaf, register): words of feature bits. Others are numbers (counts, sizes, addresses) and say nothing.
const WORDS: [(u32, u32, Register); 13] = {
    use Register::{Eax, Ebx, Ecx, Edx};
    [
        (0x1, 0, Ecx),
        (0x1, 0, Edx),
        (0x7, 0, Ebx),
        (0x7, 0, Ecx),
        (0x7, 0, Edx),
        (0x7, 1, Eax),
        // XCR0's bits.
        (0xd, 0, Eax),
        (0xd, 1, Eax),
        // KVM's own.
        (0x4000_0001, 0, Eax),
        (0x8000_0001, 0, Ecx),
        (0x8000_0001, 0, Edx),
        (0x8000_0007, 0, Edx),
        (0x8000_0008, 0, Ebx),
    ]
};

/// Bits that follow what the guest has switched on: APIC, OSXSAVE, OSPKE.
const OF_THE_GUEST: [((u32, Register), u32); 3] =
    [((0x1, Register::Edx), 1 << 9), ((0x1, Register::Ecx), 1 << 27), ((0x7, Register::Ecx), 1 << 4)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// What a vCPU with this CPUID needs, or, of the CPUID that new vCPUs get, what is on offer.
pub(super) fn host(cpuid: &[kvm_cpuid_entry2]) -> Host {
    let mut features = vec!["engine=linux".to_owned()];
    if let Some(leaf) = cpuid.iter().find(|entry| entry.function == 0) {
        let name: Vec<u8> =
            [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
        features.push(format!("cpu.vendor={}", String::from_utf8_lossy(&name)));
    }
    for (leaf, subleaf, register) in WORDS {
        let entry = cpuid.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
        let own = OF_THE_GUEST.iter().find(|(at, _)| *at == (leaf, register)).map_or(0, |(_, bits)| *bits);
        let word = entry.map_or(0, |entry| register.of(entry)) & !own;
        let bits = (0..u32::BITS).filter(|bit| word & 1 << bit != 0);
        features.extend(bits.map(|bit| format!("cpuid.{leaf:x}.{subleaf:x}.{}.{bit}", register.name())));
    }
    Host::new(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ecx, ..Default::default() }
    }

    #[test]
    fn a_host_with_less_is_told_what_it_lacks() {
        let guest = host(&[leaf(1, 0b110)]);
        assert!(guest.require(&host(&[leaf(1, 0b1110)])).is_ok());
        let error = guest.require(&host(&[leaf(1, 0b010)])).unwrap_err();
        assert_eq!(error.to_string(), "this host lacks cpuid.1.0.ecx.2");
    }
}
