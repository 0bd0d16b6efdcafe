//! Guest memory with the hole below 4 GiB.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::Error;
use super::layout::{HIGH_MEMORY, HOLE_END, HOLE_START, PAGE};

/// A guest's memory.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// Least memory of a guest: a kernel and an initramfs fit.
const LEAST_BYTES: u64 = 32 << 20;

/// Anonymous memory of `bytes` bytes, untouched.
pub(crate) fn allocate(bytes: u64) -> Result<Memory, Error> {
    let ranges: Vec<_> =
        ranges(bytes)?.into_iter().map(|(at, len)| (GuestAddress(at), len as usize)).collect();
    let ranges = Memory::from_ranges(&ranges);
    ranges.map_err(|error| Error::Host {
        doing: "allocating guest memory",
        source: std::io::Error::other(error),
    })
}

/// (address, length) of the pieces of `bytes` bytes of memory.
pub(crate) fn ranges(bytes: u64) -> Result<Vec<(u64, u64)>, Error> {
    if bytes < LEAST_BYTES || !bytes.is_multiple_of(PAGE) {
        let reason = format!("guest memory of {bytes} bytes: at least {LEAST_BYTES}, a multiple of {PAGE}");
        return Err(Error::Config(reason));
    }
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HOLE_END, bytes - low));
    }
    Ok(ranges)
}

/// What the guest is told: (address, length, usable). The part below 1 MiB holds what was put there for boot.
pub(crate) fn map_of(bytes: u64) -> Result<Vec<(u64, u64, bool)>, Error> {
    use super::layout::{BASE_MEMORY_END, MP_TABLE, RSDP};
    let mut map = vec![
        (0, MP_TABLE, true),
        (MP_TABLE, BASE_MEMORY_END - MP_TABLE, false),
        (RSDP, HIGH_MEMORY - RSDP, false),
    ];
    for (at, len) in ranges(bytes)? {
        let start = at.max(HIGH_MEMORY);
        map.push((start, at + len - start, true));
    }
    Ok(map)
}

/// End of the memory below the hole.
pub(crate) fn low_end(bytes: u64) -> u64 {
    bytes.min(HOLE_START)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_on_behind_the_hole() {
        assert_eq!(ranges(64 << 20).unwrap(), [(0, 64 << 20)]);
        assert_eq!(ranges(HOLE_START).unwrap(), [(0, HOLE_START)]);
        assert_eq!(ranges(4 << 30).unwrap(), [(0, HOLE_START), (HOLE_END, (4 << 30) - HOLE_START)]);
    }

    #[test]
    fn the_map_has_no_overlaps_and_all_of_high_memory() {
        let map = map_of(4 << 30).unwrap();
        assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:x?}");
        let high: u64 =
            map.iter().filter(|(at, _, usable)| *usable && *at >= HIGH_MEMORY).map(|(_, len, _)| len).sum();
        assert_eq!(high, (4 << 30) - HIGH_MEMORY);
    }

    #[test]
    fn too_little_or_crooked_memory_is_refused() {
        assert!(allocate(1 << 20).is_err());
        assert!(allocate((64 << 20) + 1).is_err());
    }
}
