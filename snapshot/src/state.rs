//! States: what becomes a section.

use serde::{Serialize, de::DeserializeOwned};

/// Something that is saved as one named, versioned, checksummed section.
///
/// The encoding is postcard, which writes no field names: a changed struct is another version. Raise
/// `VERSION` with every change and let [`State::migrate`] read the old ones, or snapshots of before are refused.
pub trait State: Serialize + DeserializeOwned {
    /// The name of the section, such as `vcpu` or `virtio-queue`. The owner string given when it is put
    /// tells several of one kind apart.
    const KIND: &'static str;
    /// The version that is written.
    const VERSION: u32;

    /// Reads a section of an older `version`.
    ///
    /// # Errors
    /// [`MigrateError::Unsupported`] unless implemented; what the implementation says otherwise.
    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, MigrateError> {
        let _ = (version, bytes);
        Err(MigrateError::Unsupported)
    }
}

/// Why an older section was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// That version is not read any more.
    #[error("sections that old are not read any more")]
    Unsupported,
    /// The old encoding does not decode.
    #[error("the old encoding does not decode")]
    Decode(#[from] postcard::Error),
    /// It decodes, but no state of today corresponds to it.
    #[error("{0}")]
    Refused(String),
}

/// Why a section could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// The snapshot has none of that kind and owner.
    #[error("the snapshot has no section {kind} of {owner:?}")]
    Missing {
        /// The kind asked for.
        kind: &'static str,
        /// The owner asked for.
        owner: String,
    },
    /// Written by a newer novum.
    #[error("section {kind} of {owner:?} has version {found}, this novum reads up to {supported}")]
    Newer {
        /// The section's kind.
        kind: &'static str,
        /// The section's owner.
        owner: String,
        /// The version in the snapshot.
        found: u32,
        /// The newest version this program knows.
        supported: u32,
    },
    /// Written by an older novum, and not readable.
    #[error("section {kind} of {owner:?} has version {found}, which could not be migrated to {supported}")]
    Migrate {
        /// The section's kind.
        kind: &'static str,
        /// The section's owner.
        owner: String,
        /// The version in the snapshot.
        found: u32,
        /// The version this program writes.
        supported: u32,
        /// What the migration said.
        #[source]
        source: MigrateError,
    },
    /// The bytes are intact but do not decode: the type changed without a new version.
    #[error("section {kind} of {owner:?} does not decode")]
    Decode {
        /// The section's kind.
        kind: &'static str,
        /// The section's owner.
        owner: String,
        /// What the decoder said; `None` when bytes were left over.
        #[source]
        source: Option<postcard::Error>,
    },
}

/// Decodes section bytes of `version` as an `S`.
pub(crate) fn decode<S: State>(owner: &str, version: u32, bytes: &[u8]) -> Result<S, SectionError> {
    let (kind, owner) = (S::KIND, owner.to_owned());
    if version > S::VERSION {
        return Err(SectionError::Newer { kind, owner, found: version, supported: S::VERSION });
    }
    if version < S::VERSION {
        let (found, supported) = (version, S::VERSION);
        return S::migrate(version, bytes).map_err(|source| SectionError::Migrate {
            kind,
            owner,
            found,
            supported,
            source,
        });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(SectionError::Decode { kind, owner, source: None }),
        Err(e) => Err(SectionError::Decode { kind, owner, source: Some(e) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Clock {
        ns: u64,
        running: bool,
    }

    impl State for Clock {
        const KIND: &'static str = "clock";
        const VERSION: u32 = 2;

        fn migrate(version: u32, bytes: &[u8]) -> Result<Self, MigrateError> {
            match version {
                1 => Ok(Self { ns: postcard::from_bytes(bytes)?, running: true }),
                _ => Err(MigrateError::Unsupported),
            }
        }
    }

    #[test]
    fn an_older_section_is_migrated() {
        let old = postcard::to_stdvec(&7_u64).unwrap();
        assert_eq!(decode::<Clock>("", 1, &old).unwrap(), Clock { ns: 7, running: true });
        assert!(matches!(decode::<Clock>("", 0, &old), Err(SectionError::Migrate { found: 0, .. })));
    }

    #[test]
    fn a_newer_section_is_refused() {
        let error = decode::<Clock>("cpu0", 3, &[]).unwrap_err();
        assert_eq!(error.to_string(), "section clock of \"cpu0\" has version 3, this novum reads up to 2");
    }

    #[test]
    fn left_over_and_missing_bytes_are_refused() {
        let raw = postcard::to_stdvec(&Clock { ns: 7, running: false }).unwrap();
        assert!(decode::<Clock>("", 2, &raw).is_ok());
        assert!(matches!(
            decode::<Clock>("", 2, &[&raw[..], &[0]].concat()),
            Err(SectionError::Decode { .. })
        ));
        assert!(matches!(decode::<Clock>("", 2, &raw[..1]), Err(SectionError::Decode { .. })));
    }
}
