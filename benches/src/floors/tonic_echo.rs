//! Floor (a): tonic answers and does nothing else.

use anyhow::Result;
use bytes::Bytes;

use super::Work;

/// Gives the payload back.
pub struct TonicEcho;

impl Work for TonicEcho {
    fn call(&self, payload: Bytes) -> Result<Bytes> {
        Ok(payload)
    }
}
