//! `getrandom(2)`: always the host's, so that two sandboxes of one snapshot never see the same bytes.

use rustix::io::Errno;

use super::guest::Guest;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::fill_random;

pub(super) const CALLS: &[Entry] = &[(libc::SYS_getrandom, getrandom)];

fn getrandom(process: &mut Process, [address, len, flags, ..]: Args) -> Result<Outcome, Errno> {
    const NONBLOCK: u64 = libc::GRND_NONBLOCK as u64;
    const RANDOM: u64 = libc::GRND_RANDOM as u64;
    const INSECURE: u64 = libc::GRND_INSECURE as u64;
    /// Linux never gives more than this at once.
    const MOST: u64 = 32 << 20;
    if flags & !(NONBLOCK | RANDOM | INSECURE) != 0 || flags & (RANDOM | INSECURE) == RANDOM | INSECURE {
        return Err(Errno::INVAL);
    }
    if len == 0 {
        return Ok(Outcome::ZERO);
    }
    let done = fill_random(&mut Guest::one(&process.memory, address, len.min(MOST)))?;
    Ok(Outcome::Value(done as u64))
}
