//! What this host's CPU says about its counter and its vector state (Intel SDM vol. 1 §13.2, vol. 3B §17.17; AMD APM
//! vol. 3, appendix E).

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// The vector state as programs see it in a signal frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateLayout {
    /// Bytes of the standard form for the enabled features.
    pub(crate) bytes: usize,
    /// The features that are enabled (XCR0).
    pub(crate) features: u64,
    /// Bits of MXCSR that may be set.
    pub(crate) mxcsr_mask: u32,
}

/// The legacy area and the header.
const LEAST_BYTES: u32 = 576;
/// CPUID leaf of the extended state.
const STATE: u32 = 0xd;

/// Whether the time-stamp counter counts time rather than work. Asked once: where this host is itself a guest, the
/// CPUID instruction takes tens of microseconds.
pub(crate) fn has_constant_counter() -> bool {
    const POWER: u32 = 0x8000_0007;
    const CONSTANT: u32 = 1 << 8;
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        __cpuid_count(0x8000_0000, 0).eax >= POWER && __cpuid_count(POWER, 0).edx & CONSTANT != 0
    })
}

/// Whether the CPU has `rdfsbase` and its like, and the host's kernel has turned them on for its own programs.
pub(crate) fn has_base_instructions() -> bool {
    rustix::param::linux_hwcap().1 & HWCAP2_FSGSBASE != 0
}

/// `AT_HWCAP2` (Linux arch/x86/include/uapi/asm/hwcap2.h).
pub(crate) const HWCAP2_FSGSBASE: usize = 1 << 1;

/// The layout where the features in `xcr0` are enabled; found out once for the value that all vCPUs have.
pub(crate) fn state_layout(xcr0: u64) -> StateLayout {
    static LAYOUT: OnceLock<StateLayout> = OnceLock::new();
    let known = *LAYOUT.get_or_init(|| find_layout(xcr0));
    if known.features == xcr0 { known } else { find_layout(xcr0) }
}

fn find_layout(xcr0: u64) -> StateLayout {
    let end = |feature: u32| {
        let leaf = __cpuid_count(STATE, feature);
        leaf.eax + leaf.ebx
    };
    let bytes = (2..63).filter(|i| xcr0 & 1 << i != 0).map(end).fold(LEAST_BYTES, u32::max);
    // Every processor with XSAVE has DAZ; AMD's have the misaligned-access bit as well, which no program may miss.
    StateLayout { bytes: bytes as usize, features: xcr0, mxcsr_mask: 0xffff }
}

/// What this host's CPU has that a program may have found and relies on from then on: instruction sets, and where each part
/// of the vector state lies in memory. For images, which run only where all of it is there.
pub(crate) fn image_features() -> Vec<String> {
    macro_rules! present {
        ($($name:tt)*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let sets = present![
        "adx" "aes" "avx" "avx2" "avx512bitalg" "avx512bw" "avx512cd" "avx512dq" "avx512f" "avx512ifma" "avx512vbmi"
        "avx512vbmi2" "avx512vl" "avx512vnni" "avx512vpopcntdq" "bmi1" "bmi2" "cmpxchg16b" "f16c" "fma" "fxsr" "gfni"
        "lzcnt" "movbe" "pclmulqdq" "popcnt" "rdrand" "rdseed" "rtm" "sha" "sse" "sse2" "sse3" "sse4.1" "sse4.2" "sse4a" "ssse3"
        "tbm" "vaes" "vpclmulqdq" "xsave" "xsavec" "xsaveopt" "xsaves"
    ];
    let sets = sets.into_iter().filter(|(_, there)| *there).map(|(name, _)| format!("cpu.{name}"));
    let parts = (2..32).filter(|part| __cpuid_count(STATE, 0).eax & 1 << part != 0).map(|part| {
        let leaf = __cpuid_count(STATE, part);
        format!("xsave.{part}={}+{}", leaf.ebx, leaf.eax)
    });
    sets.chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_enabled_feature_has_its_room() {
        assert_eq!(state_layout(3).bytes, 576);
        let avx = state_layout(7).bytes;
        assert!((576..=4096).contains(&avx));
        assert!(state_layout(0xe7).bytes >= avx);
    }
}
