//! Bytes at rest.
//!
//! This crate owns how novum writes things down. [`Digest`] names content, [`publish`] makes a file appear
//! whole or not at all, and a [`Store`] holds [`Snapshot`]s: named, versioned, checksummed sections and an
//! image of memory that is mapped copy-on-write, by itself or as a diff over a parent. It knows neither KVM nor Wasm.
//!
//! ```
//! use novum_snapshot::{Host, Layout, Region, Snapshot, Source, State, Store, Writer};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Clock { ns: u64 }
//! impl State for Clock {
//!     const KIND: &'static str = "clock";
//!     const VERSION: u32 = 1;
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path())?;
//! let memory = vec![7; 1 << 20];
//! let mut writer = Writer::base(&store, Host::new(["cpu.avx2"]))?;
//! writer.put("vm", &Clock { ns: 5 })?;
//! writer.memory(&[Region::new(0x10_0000, Source::Slice(&memory))], &Layout::default())?;
//! let digest = writer.publish()?;
//!
//! let snapshot = Snapshot::open(&store, &digest)?;
//! snapshot.require(&Host::new(["cpu.avx2", "cpu.avx512f"]))?;
//! assert_eq!(snapshot.take::<Clock>("vm")?.ns, 5);
//! let mapping = novum_snapshot::sys::Mapping::new(&snapshot)?;
//! assert_eq!(mapping.regions()[0].guest_address, 0x10_0000);
//! # Ok(()) }
//! ```

mod change;
pub mod collect;
mod data;
pub mod digest;
pub mod flatten;
pub mod format;
mod host;
mod image;
mod index;
pub mod inspect;

mod layer;
pub mod layout;
mod pages;
pub mod plan;
pub mod publish;
mod refs;
mod region;
mod resident;
pub mod seal;
mod snapshot;
mod state;
mod store;
pub mod sys;
mod writer;

pub use digest::Digest;
pub use host::{Host, Incompatible};
pub use index::MAX_DEPTH;
pub use layer::LayerError;
pub use layout::Layout;
pub use pages::PageSet;
pub use plan::Plan;
pub use refs::{ParseRefError, RefName};
pub use region::{ReadMemory, Region, Source};
pub use seal::Salt;
pub use snapshot::{OpenError, ReadError, Section, Snapshot};
pub use state::{MigrateError, SectionError, State};
pub use store::{Store, StoreError};
pub use writer::{WriteError, Writer};
