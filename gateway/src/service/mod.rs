//! The gRPC services: from messages to the domain and back, nothing else.

pub mod admin;
pub mod deadline;
pub mod functions;
pub mod sandbox_messages;
pub mod sandbox_streams;
pub mod sandboxes;
pub mod stream;
