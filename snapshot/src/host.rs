//! What a snapshot demands of the machine that restores it.
//!
//! The features are opaque here: sorted strings that the engine chooses (`cpu.avx2`, `kvm.xsave_size=2696`,
//! `vendor=amd`). A snapshot runs where every string it names is on offer and the page size is the same.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::format::MIN_PAGE;

/// A page size and a set of features: demanded by a snapshot, offered by a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Bytes in a page of memory.
    pub page_size: u32,
    /// Whatever must be equal on both sides.
    pub features: BTreeSet<String>,
}

impl Host {
    /// This machine's page size and the given features.
    #[must_use]
    pub fn new<S: Into<String>>(features: impl IntoIterator<Item = S>) -> Self {
        let page_size = u32::try_from(rustix::param::page_size()).unwrap_or(MIN_PAGE);
        Self { page_size, features: features.into_iter().map(Into::into).collect() }
    }

    /// Whether what `self` demands is on `offer`.
    ///
    /// # Errors
    /// [`Incompatible`], which says what is missing.
    pub fn require(&self, offer: &Self) -> Result<(), Incompatible> {
        if self.page_size != offer.page_size {
            return Err(Incompatible::PageSize { snapshot: self.page_size, host: offer.page_size });
        }
        let missing: Vec<String> = self.features.difference(&offer.features).cloned().collect();
        if missing.is_empty() { Ok(()) } else { Err(Incompatible::Features { missing }) }
    }
}

/// Why a snapshot cannot run on a host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incompatible {
    /// Pages of memory have another size here.
    #[error("made for pages of {snapshot} bytes, this host has pages of {host}")]
    PageSize {
        /// The snapshot's page size.
        snapshot: u32,
        /// The host's.
        host: u32,
    },
    /// The host does not offer what the snapshot was made with.
    #[error("this host lacks {}", missing.join(", "))]
    Features {
        /// The missing features, sorted.
        missing: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_offers_more_is_good_enough() {
        let demand = Host::new(["cpu.avx2"]);
        assert_eq!(demand.require(&Host::new(["cpu.avx2", "cpu.avx512f"])), Ok(()));
    }

    #[test]
    fn every_missing_feature_is_named() {
        let demand = Host::new(["cpu.sse3", "cpu.avx2", "cpu.amx"]);
        let error = demand.require(&Host::new(["cpu.sse3"])).unwrap_err();
        assert_eq!(error.to_string(), "this host lacks cpu.amx, cpu.avx2");
    }

    #[test]
    fn another_page_size_is_refused_before_the_features() {
        let mut demand = Host::new(["cpu.sve"]);
        demand.page_size *= 4;
        let error = demand.require(&Host::new([""; 0])).unwrap_err();
        assert!(matches!(error, Incompatible::PageSize { .. }), "{error}");
    }
}
