//! Sequences of calls with any arguments, without a VM.

use proptest::prelude::*;

use super::driver;

proptest! {
    #[test]
    fn no_sequence_of_calls_panics_or_gets_out(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        driver::serve(&bytes, tempfile::tempdir().unwrap().path());
    }
}
