//! What happens when the first byte of the reply is out: the pages of the working set are noted, or its second part is populated.

use std::sync::Arc;

use super::Machine;
use crate::process::memory::{Touched, WorkingSet};

/// See the module. Each happens once.
#[derive(Debug, Default)]
pub(crate) enum AtReply {
    /// Nothing, or nothing more.
    #[default]
    Nothing,
    /// The pages that the program has stored into are noted.
    Note,
    /// They were.
    Noted(Touched),
    /// The pages that it stores into from then on are copied.
    Populate(Arc<WorkingSet>),
}

impl Machine {
    /// What is to happen in the next run.
    pub(in crate::process) fn at_reply(&mut self, what: AtReply) {
        self.at_reply = what;
    }

    /// The pages that were noted in the last run; `None` where it came to no reply.
    pub(in crate::process) fn take_noted(&mut self) -> Option<Touched> {
        match std::mem::take(&mut self.at_reply) {
            AtReply::Noted(pages) => Some(pages),
            _ => None,
        }
    }

    /// After every exit: the reply may have begun.
    pub(super) fn look_at_reply(&mut self) {
        let waits = matches!(self.at_reply, AtReply::Note | AtReply::Populate(_));
        if !waits || !self.control.has_replied() {
            return;
        }
        self.at_reply = match std::mem::take(&mut self.at_reply) {
            AtReply::Note => self.process.memory.stored_pages().map_or(AtReply::Nothing, AtReply::Noted),
            AtReply::Populate(set) => {
                self.process.memory.populate_set(&set.rest);
                AtReply::Nothing
            }
            other => other,
        };
    }
}
