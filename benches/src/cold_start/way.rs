//! The ways in which a program is started.

use novum_sandbox::EngineKind;
use serde::{Deserialize, Serialize};

use super::engine::{ENGINES, Rows};

/// How a program comes to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Image, sandbox and call; the engine has never seen the program.
    Full(#[serde(with = "engine_name")] EngineKind),
    /// A new sandbox of a ready image, and a call. The process engine has a VM shell ready.
    Restore(#[serde(with = "engine_name")] EngineKind),
    /// The same without a shell: the VM is made on the way.
    Create(#[serde(with = "engine_name")] EngineKind),
    /// The warmed program, which its image is, forked into a new sandbox with everything made on the way, up to the
    /// moment when it can take a call.
    Branch(#[serde(with = "engine_name")] EngineKind),
    /// A new sandbox of a ready image, without a call.
    Start(#[serde(with = "engine_name")] EngineKind),
    /// A used sandbox: reset, and a call.
    Reset(#[serde(with = "engine_name")] EngineKind),
    /// A call of a sandbox that was reset, or made, some time ago: what a pool's client waits for.
    Call(#[serde(with = "engine_name")] EngineKind),
    /// A new process of the host.
    Spawn,
    /// A fork of a warm process of the host.
    Fork,
    /// wasmtime and its own WASI: a fresh instance, and a call.
    Wasmtime,
    /// Bare KVM: a VM with a vCPU and a memslot, left once. No program.
    Kvm,
    /// Bare KVM: out of a guest and back into it.
    Exit,
}

/// Engines by their names in manifests.
mod engine_name {
    use novum_sandbox::EngineKind;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &EngineKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EngineKind, D::Error> {
        let name = String::deserialize(from)?;
        let kinds = [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux];
        kinds
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| serde::de::Error::custom(format!("no engine {name}")))
    }
}

impl Way {
    /// All of them, in the order of tables: each engine's beside what it stands on.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of_engines = ENGINES.into_iter().flat_map(Rows::ways).copied();
        of_engines.chain([Self::Spawn, Self::Fork, Self::Kvm, Self::Exit])
    }

    /// For tables and charts.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Full(kind) => format!("{kind}: full cold start"),
            Self::Restore(EngineKind::Process) => "process: restore + call, shell ready".into(),
            Self::Restore(kind) => format!("{kind}: restore + call"),
            Self::Create(kind) => format!("{kind}: restore + call, all made"),
            Self::Branch(kind) => format!("{kind}: fork, all made, no call"),
            Self::Start(kind) => format!("{kind}: start, no call"),
            Self::Reset(kind) => format!("{kind}: reset + call"),
            Self::Call(EngineKind::Wasm) => "wasm: call of a ready instance".into(),
            Self::Call(kind) => format!("{kind}: call of a clean sandbox"),
            Self::Spawn => "native: spawn".into(),
            Self::Fork => "native: fork of a warm process".into(),
            Self::Wasmtime => "wasmtime with wasmtime-wasi".into(),
            Self::Kvm => "floor: bare KVM, no program".into(),
            Self::Exit => "floor: one exit of bare KVM".into(),
        }
    }

    /// The engine, of what is novum's.
    #[must_use]
    pub fn engine(self) -> Option<EngineKind> {
        match self {
            Self::Full(kind) | Self::Restore(kind) | Self::Create(kind) => Some(kind),
            Self::Branch(kind) | Self::Start(kind) | Self::Reset(kind) | Self::Call(kind) => Some(kind),
            Self::Spawn | Self::Fork | Self::Wasmtime | Self::Kvm | Self::Exit => None,
        }
    }

    /// Whether it is the same for every program.
    pub(super) fn is_of_host(self) -> bool {
        matches!(self, Self::Kvm | Self::Exit)
    }
}
