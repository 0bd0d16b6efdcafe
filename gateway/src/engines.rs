//! The engines of this gateway: those of the sandbox's table that this machine can run, made once.

use std::sync::Arc;

use novum_sandbox::engines::{self, EngineConfig};
use novum_sandbox::{Engine, EngineChoice, EngineKind};

use crate::error::Error;

const KINDS: [EngineKind; 3] = [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux];

/// One engine, or why it is not there.
pub struct Slot {
    /// Which.
    pub kind: EngineKind,
    /// It, or the reason with what to do about it.
    pub engine: Result<Arc<dyn Engine>, String>,
}

/// All of them.
pub struct Engines {
    slots: Vec<Slot>,
}

impl Engines {
    /// Makes every engine that can be made. May block for some time.
    #[must_use]
    pub fn new(config: &EngineConfig) -> Self {
        Self { slots: KINDS.into_iter().map(|kind| Slot { kind, engine: make(kind, config) }).collect() }
    }

    /// Every engine that novum knows.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// One of them.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn get(&self, kind: EngineKind) -> Result<Arc<dyn Engine>, String> {
        self.slots
            .iter()
            .find(|slot| slot.kind == kind)
            .map_or_else(|| Err(engines::absence(kind).to_owned()), |slot| slot.engine.clone())
    }

    /// The engine for an artifact that begins with `head`.
    ///
    /// # Errors
    /// [`Error::Unrecognised`] or [`Error::EngineUnavailable`].
    pub fn choose(&self, choice: EngineChoice, head: &[u8]) -> Result<(EngineKind, Arc<dyn Engine>), Error> {
        let recognised = || engines::TABLE.iter().find(|row| (row.recognises)(head)).map(|row| row.kind);
        // Said even where this build has no engine for it.
        let elf = || head.starts_with(b"\x7fELF").then_some(EngineKind::Process);
        let kind = choice.kind().or_else(recognised).or_else(elf).ok_or(Error::Unrecognised)?;
        let engine = self.get(kind).map_err(|reason| Error::EngineUnavailable { engine: kind, reason })?;
        Ok((kind, engine))
    }
}

fn make(kind: EngineKind, config: &EngineConfig) -> Result<Arc<dyn Engine>, String> {
    let row = engines::row(kind).ok_or_else(|| engines::absence(kind).to_owned())?;
    (row.probe)()?;
    (row.make)(config).map_err(|error| with_causes(&error))
}

/// An error with its chain of causes in one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
