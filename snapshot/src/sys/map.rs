//! A snapshot's memory in this process: anonymous zeros with runs of the files mapped over them, all of it
//! private (copy-on-write). What is not written to is shared through the page cache with every other mapping.

use std::ffi::c_void;
use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::fill::{batches, split};
use crate::plan::{Plan, PlannedRegion, PlannedRun};
use crate::snapshot::Snapshot;

/// IOV_MAX: most pieces in one call of preadv(2).
const MAX_PIECES: usize = 1024;

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No room for a region, or one longer than the address space.
    #[error("could not reserve {len} bytes for the region at {guest_address:#x}")]
    Reserve {
        /// Where the region is for the guest.
        guest_address: u64,
        /// Its length.
        len: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A run could not be mapped.
    #[error("could not map the {len} bytes at guest address {guest_address:#x}")]
    Run {
        /// Where the run is for the guest.
        guest_address: u64,
        /// Its length.
        len: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A run could not be read.
    #[error("could not read the {len} bytes at guest address {guest_address:#x}")]
    Read {
        /// Where the run is for the guest.
        guest_address: u64,
        /// Its length.
        len: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A plan that some other program made.
    #[error("the plan has a run outside its region, or of a file that was not given")]
    Plan,
    /// Pages could not be made present.
    #[error("could not populate the {len} bytes at guest address {guest_address:#x}")]
    Populate {
        /// Where the run is for the guest.
        guest_address: u64,
        /// Its length.
        len: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What pages are populated for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The shared page is put into the page table; the first write still copies it.
    Read,
    /// The page is copied now.
    Write,
}

/// How memory is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MapOptions {
    /// Runs of up to this many bytes are read instead of mapped: cheaper than mapping where runs are short (by estimate),
    /// but memory of this process's own from the start. For diffs whose pages lie scattered. 0 maps everything.
    pub read_up_to: u64,
}

/// The memory of a snapshot. Dropping it unmaps what it mapped.
#[derive(Debug)]
pub struct Mapping {
    regions: Vec<MappedRegion>,
}

impl Mapping {
    /// Maps all regions wherever there is room.
    ///
    /// # Errors
    /// [`MapError`]
    pub fn new(snapshot: &Snapshot) -> Result<Self, MapError> {
        Self::from_plan(snapshot.mapping_plan(), &snapshot.files(), MapOptions::default())
    }

    /// The same from a plan and the files it means.
    ///
    /// # Errors
    /// [`MapError`]
    pub fn from_plan(plan: &Plan, files: &[BorrowedFd<'_>], options: MapOptions) -> Result<Self, MapError> {
        let regions = plan.regions.iter().map(|region| MappedRegion::new(region, files, options));
        Ok(Self { regions: regions.collect::<Result<_, _>>()? })
    }

    /// The regions, by guest address.
    #[must_use]
    pub fn regions(&self) -> &[MappedRegion] {
        &self.regions
    }

    /// Takes the regions apart, for owners that keep each on its own.
    #[must_use]
    pub fn into_regions(self) -> Vec<MappedRegion> {
        self.regions
    }

    /// Makes the working sets of all layers present, in the order in which they lie in the files.
    /// Returns how many bytes that were.
    ///
    /// # Errors
    /// [`MapError::Populate`]
    pub fn populate_working_set(&self, plan: &Plan, access: Access) -> Result<u64, MapError> {
        let mut runs: Vec<&PlannedRun> = plan.runs().filter(|run| run.first).collect();
        runs.sort_unstable_by_key(|run| (run.layer, run.offset));
        for run in &runs {
            let end = run.guest_address.saturating_add(run.len);
            let mut regions = self.regions.iter();
            let region =
                regions.find(|r| r.guest_address <= run.guest_address && end <= r.guest_address + r.len);
            region.ok_or(MapError::Plan)?.populate(run.guest_address, run.len, access)?;
        }
        Ok(runs.iter().map(|run| run.len).sum())
    }
}

/// One region of guest memory in this process.
#[derive(Debug)]
pub struct MappedRegion {
    /// Where it starts for the guest.
    pub guest_address: u64,
    /// What the engine said when it saved the region.
    pub flags: u64,
    address: NonNull<u8>,
    len: u64,
    /// Whether the address range belongs to the caller, who gets it back.
    borrowed: bool,
}

// SAFETY: the region is plain memory that this value owns exclusively; only raw pointers are handed out, and
// who dereferences them answers for the threads that do.
unsafe impl Send for MappedRegion {}
// SAFETY: no method reads or writes the memory; `populate` is a system call that any thread may make.
unsafe impl Sync for MappedRegion {}

impl MappedRegion {
    /// Maps a region wherever there is room.
    ///
    /// # Errors
    /// [`MapError`]
    pub fn new(
        region: &PlannedRegion,
        files: &[BorrowedFd<'_>],
        options: MapOptions,
    ) -> Result<Self, MapError> {
        check(region, files)?;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing else uses.
        let address = unsafe { zeros(region, std::ptr::null_mut(), MapFlags::empty()) }?;
        let mapped = Self::of(region, address, false);
        mapped.bring_in(region, files, options)?;
        Ok(mapped)
    }

    /// Maps a region over address space that the caller set aside, for example a guest-physical window reserved
    /// with PROT_NONE. When the value is dropped the range is inaccessible again, and still reserved.
    ///
    /// # Safety
    /// From `address` on, `region.len` bytes are mapped by the caller and used by nobody else as long as the
    /// value lives; `address` is page-aligned.
    ///
    /// # Errors
    /// [`MapError`]; the range may then hold part of the region.
    pub unsafe fn at(
        address: NonNull<u8>,
        region: &PlannedRegion,
        files: &[BorrowedFd<'_>],
        options: MapOptions,
    ) -> Result<Self, MapError> {
        check(region, files)?;
        // SAFETY: the caller owns the range.
        let address = unsafe { zeros(region, address.as_ptr().cast(), MapFlags::FIXED) }?;
        let mapped = Self::of(region, address, true);
        mapped.bring_in(region, files, options)?;
        Ok(mapped)
    }

    fn of(region: &PlannedRegion, address: NonNull<u8>, borrowed: bool) -> Self {
        let PlannedRegion { guest_address, len, flags, .. } = *region;
        Self { guest_address, flags, address, len, borrowed }
    }

    /// Brings the files' runs in over the zeros. `check` has seen that all lie within the region.
    fn bring_in(
        &self,
        region: &PlannedRegion,
        files: &[BorrowedFd<'_>],
        options: MapOptions,
    ) -> Result<(), MapError> {
        let (mapped, read) = split(&region.runs, options.read_up_to);
        for run in &mapped {
            self.map_run(run, files[run.layer as usize])?;
        }
        for batch in batches(&read, MAX_PIECES) {
            self.read_runs(batch, files[batch[0].layer as usize])?;
        }
        Ok(())
    }

    fn map_run(&self, run: &PlannedRun, file: BorrowedFd<'_>) -> Result<(), MapError> {
        let PlannedRun { guest_address, len, .. } = *run;
        let address = self.host_address(guest_address);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range lies within this region, which this value owns and has not handed out yet.
        unsafe { mmap(address, len as usize, protection, flags, file, run.offset) }
            .map_err(|e| MapError::Run { guest_address, len, source: e.into() })?;
        Ok(())
    }

    /// Reads runs that follow each other in the file.
    fn read_runs(&self, runs: &[PlannedRun], file: BorrowedFd<'_>) -> Result<(), MapError> {
        let (guest_address, len) = (runs[0].guest_address, runs.iter().map(|run| run.len).sum());
        let failed = |source: io::Error| MapError::Read { guest_address, len, source };
        let piece = |run: &PlannedRun| {
            let address = self.host_address(run.guest_address).cast();
            // SAFETY: the range lies within this region, which this value owns and has not handed out yet; runs
            // do not overlap (`check`), so neither do the slices.
            IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(address, run.len as usize) })
        };
        let mut pieces: Vec<_> = runs.iter().map(piece).collect();
        let mut rest = pieces.as_mut_slice();
        let mut offset = runs[0].offset;
        while !rest.is_empty() {
            match rustix::io::preadv(file, rest, offset) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    offset += n as u64;
                    IoSliceMut::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
        }
        Ok(())
    }

    /// Where the region is in this process. Readable and writable for [`MappedRegion::len`] bytes as long as
    /// this value lives.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Its length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there are no empty regions")]
    pub const fn len(&self) -> u64 {
        self.len
    }

    fn host_address(&self, guest_address: u64) -> *mut c_void {
        self.address.as_ptr().wrapping_add((guest_address - self.guest_address) as usize).cast()
    }

    /// Makes pages present before anybody touches them.
    ///
    /// # Errors
    /// [`MapError::Plan`] if they are not in this region, [`MapError::Populate`].
    pub fn populate(&self, guest_address: u64, len: u64, access: Access) -> Result<(), MapError> {
        if !within(guest_address, len, self.guest_address, self.len) {
            return Err(MapError::Plan);
        }
        let advice = match access {
            Access::Read => Advice::LinuxPopulateRead,
            Access::Write => Advice::LinuxPopulateWrite,
        };
        // SAFETY: the range is mapped by this value; populating changes no content.
        unsafe { madvise(self.host_address(guest_address), len as usize, advice) }
            .map_err(|e| MapError::Populate { guest_address, len, source: e.into() })
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        let (address, len) = (self.address.as_ptr().cast(), self.len as usize);
        // Neither can fail for a range that is mapped, except for want of kernel memory; then it stays mapped.
        if self.borrowed {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the caller of `at` lent the range for the life of this value; it stays reserved.
            let _ = unsafe { mmap_anonymous(address, len, ProtFlags::empty(), flags) };
        } else {
            // SAFETY: `new` mapped this range, and pointers into it are good only as long as this value lives.
            let _ = unsafe { munmap(address, len) };
        }
    }
}

fn within(start: u64, len: u64, outer: u64, outer_len: u64) -> bool {
    start.checked_sub(outer).is_some_and(|skip| skip <= outer_len && len <= outer_len - skip)
}

/// A plan can come from another process: nothing may be brought in outside its region, or twice.
fn check(region: &PlannedRegion, files: &[BorrowedFd<'_>]) -> Result<(), MapError> {
    let fits = |run: &PlannedRun| {
        let known = (run.layer as usize) < files.len() && run.offset.checked_add(run.len).is_some();
        known && run.len > 0 && within(run.guest_address, run.len, region.guest_address, region.len)
    };
    let apart = |pair: &[PlannedRun]| pair[0].guest_address + pair[0].len <= pair[1].guest_address;
    let good = region.guest_address.checked_add(region.len).is_some()
        && region.runs.iter().all(fits)
        && region.runs.windows(2).all(apart);
    if good { Ok(()) } else { Err(MapError::Plan) }
}

/// Maps zeros for a whole region.
///
/// # Safety
/// As mmap: with MAP_FIXED the caller owns the range at `address`.
unsafe fn zeros(
    region: &PlannedRegion,
    address: *mut c_void,
    flags: MapFlags,
) -> Result<NonNull<u8>, MapError> {
    let PlannedRegion { guest_address, len, .. } = *region;
    let failed = |source: io::Error| MapError::Reserve { guest_address, len, source };
    let bytes = usize::try_from(len).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = flags | MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: upheld by the caller.
    let mapped =
        unsafe { mmap_anonymous(address, bytes, protection, flags) }.map_err(|e| failed(e.into()))?;
    NonNull::new(mapped.cast()).ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const PAGE: u64 = 4096;

    fn file(bytes: &[u8]) -> std::fs::File {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn region(pages: u64, runs: &[(u64, u64, u64)]) -> PlannedRegion {
        let run = |&(page, pages, at)| PlannedRun {
            guest_address: PAGE * page,
            len: PAGE * pages,
            layer: 0,
            offset: PAGE * at,
            first: false,
        };
        PlannedRegion {
            guest_address: PAGE,
            len: pages * PAGE,
            flags: 3,
            runs: runs.iter().map(run).collect(),
        }
    }

    fn byte(region: &MappedRegion, at: u64) -> u8 {
        assert!(at < region.len());
        // SAFETY: within the region, which lives; nobody writes to it meanwhile.
        unsafe { region.as_ptr().add(at as usize).read() }
    }

    #[test]
    fn runs_are_mapped_where_they_belong_and_the_rest_is_zero() {
        let file = file(&[[1; 4096], [2; 4096], [3; 4096]].concat());
        let mapped =
            MappedRegion::new(&region(4, &[(1, 1, 2), (3, 2, 0)]), &[file.as_fd()], MapOptions::default())
                .unwrap();
        let bytes: Vec<u8> = (0..4).map(|page| byte(&mapped, page * PAGE)).collect();
        assert_eq!(bytes, [3, 0, 1, 2]);
    }

    #[test]
    fn short_runs_are_read_and_are_private_from_the_start() {
        let file = file(&[[1; 4096], [2; 4096], [3; 4096], [4; 4096]].concat());
        // The first and third page are one mapping, with a page in between that is somewhere else in the file.
        let plan = region(5, &[(1, 1, 0), (2, 1, 3), (3, 2, 2), (5, 1, 0)]);
        let options = MapOptions { read_up_to: PAGE };
        let mapped = MappedRegion::new(&plan, &[file.as_fd()], options).unwrap();
        let bytes: Vec<u8> = (0..5).map(|page| byte(&mapped, page * PAGE)).collect();
        assert_eq!(bytes, [1, 4, 3, 4, 1]);
        let own = crate::PageSet::private(mapped.as_ptr(), 5 * PAGE as usize).unwrap();
        assert_eq!(own.runs().collect::<Vec<_>>(), [0..2, 4..5]);
        let short = region(1, &[(1, 1, 4)]);
        assert!(matches!(MappedRegion::new(&short, &[file.as_fd()], options), Err(MapError::Read { .. })));
    }

    #[test]
    fn writing_changes_neither_the_file_nor_another_mapping() {
        let file = file(&[1; 4096]);
        let plan = region(1, &[(1, 1, 0)]);
        let (a, b) = (
            MappedRegion::new(&plan, &[file.as_fd()], MapOptions::default()).unwrap(),
            MappedRegion::new(&plan, &[file.as_fd()], MapOptions::default()),
        );
        // SAFETY: within the region, which lives.
        unsafe { a.as_ptr().write(9) };
        assert_eq!((byte(&a, 0), byte(&b.unwrap(), 0)), (9, 1));
    }

    #[test]
    fn a_borrowed_range_is_given_back() {
        let file = file(&[1; 4096]);
        let reserved = MappedRegion::new(&region(2, &[]), &[], MapOptions::default()).unwrap();
        let plan = region(1, &[(1, 1, 0)]);
        // SAFETY: the second page of `reserved`, which outlives the mapping and is not used meanwhile.
        let mapped = unsafe {
            let address = NonNull::new(reserved.as_ptr().add(4096)).unwrap();
            MappedRegion::at(address, &plan, &[file.as_fd()], MapOptions::default()).unwrap()
        };
        assert_eq!(byte(&mapped, 0), 1);
        assert!(mapped.populate(PAGE, PAGE, Access::Write).is_ok());
        let address = mapped.as_ptr() as usize;
        drop(mapped);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&format!("{address:x}-"))).unwrap();
        assert!(line.contains("---p"), "{line}");
    }

    #[test]
    fn a_plan_that_leaves_its_region_is_refused() {
        let file = file(&[1; 4096]);
        for bad in [(0, 1, 0), (2, 1, 0), (1, 2, 0), (u64::MAX / PAGE, 1, 0)] {
            let result = MappedRegion::new(&region(1, &[bad]), &[file.as_fd()], MapOptions::default());
            assert!(matches!(result, Err(MapError::Plan)), "{bad:?}");
        }
        assert!(matches!(
            MappedRegion::new(&region(1, &[(1, 1, 0)]), &[], MapOptions::default()),
            Err(MapError::Plan)
        ));
        let huge = PlannedRegion { len: 1 << 62, ..region(1, &[]) };
        assert!(matches!(
            MappedRegion::new(&huge, &[], MapOptions::default()),
            Err(MapError::Reserve { .. })
        ));
    }

    #[test]
    fn populating_outside_the_region_is_refused() {
        let mapped = MappedRegion::new(&region(1, &[]), &[], MapOptions::default()).unwrap();
        assert!(mapped.populate(PAGE, PAGE, Access::Read).is_ok());
        assert!(matches!(mapped.populate(0, PAGE, Access::Read), Err(MapError::Plan)));
        assert!(matches!(mapped.populate(PAGE, 2 * PAGE, Access::Read), Err(MapError::Plan)));
    }
}
