//! The one place that turns a domain error into a gRPC status with google.rpc details, and into an HTTP status.
//! Sources: google/rpc/code.proto (the meaning and HTTP mapping of each code), google/rpc/error_details.proto.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use novum_proto::gateway::v1 as proto;
use novum_sandbox::Error as SandboxError;
use novum_sandbox::session::{FileFailure, SessionError};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::artifacts::ArtifactError;
use crate::convert;
use crate::engines::with_causes;
use crate::error::{Error, FailedRun, StoppedBy};
use crate::unpack::UnpackError;

/// A failed run's log tail in a status: details travel in a header, of which clients take 8 KiB (base64 included).
const DETAIL_TAIL_BYTES: usize = 2 << 10;
/// A status message travels in a header too.
const MESSAGE_BYTES: usize = 1 << 10;

/// What a client is told.
struct Verdict {
    code: Code,
    details: Vec<prost_types::Any>,
}

impl Verdict {
    fn new(code: Code) -> Self {
        Self { code, details: Vec::new() }
    }

    fn with(mut self, detail: &impl Detail) -> Self {
        self.details.push(any(detail));
        self
    }
}

/// A message that can stand in a status.
trait Detail: Message {
    const NAME: &'static str;
}

macro_rules! details {
    ($($message:ty => $name:literal),* $(,)?) => { $(impl Detail for $message { const NAME: &'static str = $name; })* };
}

details! {
    pb::BadRequest => "google.rpc.BadRequest",
    pb::PreconditionFailure => "google.rpc.PreconditionFailure",
    pb::QuotaFailure => "google.rpc.QuotaFailure",
    pb::RetryInfo => "google.rpc.RetryInfo",
    proto::InvocationFailure => "novum.gateway.v1.InvocationFailure",
}

fn any<D: Detail>(detail: &D) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{}", D::NAME), value: detail.encode_to_vec() }
}

/// The gRPC status of an error.
#[must_use]
pub fn grpc(error: &Error) -> Status {
    let verdict = judge(error);
    let mut message = with_causes(error);
    convert::truncate(&mut message, MESSAGE_BYTES);
    let status = pb::Status { code: verdict.code as i32, message: message.clone(), details: verdict.details };
    Status::with_details(verdict.code, message, Bytes::from(status.encode_to_vec()))
}

/// The HTTP status of a gRPC code (google/rpc/code.proto).
#[must_use]
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error as an HTTP reply says it.
#[derive(Debug)]
pub struct HttpError {
    /// The reply's status.
    pub status: StatusCode,
    /// The gRPC code's name, as in `RESOURCE_EXHAUSTED`.
    pub code: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// The first field with an impossible value.
    pub field: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// The HTTP reply for an error.
#[must_use]
pub fn http(error: &Error) -> HttpError {
    let code = judge(error).code;
    let status = match error {
        // HTTP has a status of its own for these (RFC 9110 §15.5.14).
        Error::PayloadTooLarge { .. }
        | Error::Artifact(
            ArtifactError::TooLarge { .. } | ArtifactError::Unpack(UnpackError::TooLarge { .. }),
        ) => StatusCode::PAYLOAD_TOO_LARGE,
        // A limit that the function met, not the caller's rate (RFC 9110 §15.6.3).
        Error::Stopped {
            error: StoppedBy::Engine(SandboxError::MemoryLimit { .. } | SandboxError::OutputLimit { .. }),
            ..
        } => StatusCode::BAD_GATEWAY,
        _ => http_status(code),
    };
    HttpError {
        status,
        code: code_name(code),
        message: with_causes(error),
        field: match error {
            Error::Fields(fields) => fields.first().map(|field| field.field.clone()),
            Error::Share { field, .. } => Some(field.clone()),
            _ => None,
        },
        retry_after: retry_after(error),
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::QueueFull { retry_after, .. }
        | Error::Capacity { retry_after, .. }
        | Error::MemoryBudget { retry_after, .. } => Some(*retry_after),
        _ => None,
    }
}

/// Every error decides here; there is no catch-all, so that a new one must.
fn judge(error: &Error) -> Verdict {
    match error {
        Error::NoFunction { .. } | Error::NoVersion { .. } => Verdict::new(Code::NotFound),
        Error::NoSandbox { .. } => Verdict::new(Code::NotFound),
        Error::SandboxExists { .. } => Verdict::new(Code::AlreadyExists),
        Error::TooManySandboxes { .. } => quota("max-sessions", error),
        Error::CommandOutput { .. } => quota("output_bytes", error),
        Error::WatchTooSlow => quota("watch", error),
        Error::Session(error) => session(error),
        Error::Fields(fields) => bad_request(fields.iter().map(|f| (f.field.clone(), f.reason.clone()))),
        Error::Unrecognised => bad_request([("chunk".to_owned(), error.to_string())]),
        Error::EngineUnavailable { engine, reason } => precondition("ENGINE", engine.as_str(), reason),
        Error::Share { source_path, reason, .. } => {
            precondition("SHARE", &source_path.to_string_lossy(), reason)
        }
        Error::NotPrepared { function, reason, .. } => precondition("FUNCTION", function, reason),
        Error::TooManyFunctions { .. } => quota("max-functions", error),
        Error::PayloadTooLarge { .. } => quota("max-payload", error),
        Error::ArtifactTooLarge { flag, .. } => quota(flag.trim_start_matches('-'), error),
        Error::QueueFull { retry_after, function, .. } => {
            quota(&format!("function:{function}/pool.queue"), error).with(&retry_info(*retry_after))
        }
        Error::Capacity { retry_after, .. } => quota("max-sandboxes", error).with(&retry_info(*retry_after)),
        Error::MemoryBudget { retry_after, .. } => {
            quota("memory-budget", error).with(&retry_info(*retry_after))
        }
        Error::Descriptors { .. } => quota("open-files", error),
        Error::DeadlineBeforeStart { .. } => Verdict::new(Code::DeadlineExceeded),
        Error::Draining => Verdict::new(Code::Unavailable),
        Error::Stopped { error, run } => stopped(error).with(&failure(run)),
        Error::Engine(error) => engine(error),
        Error::Artifact(error) => artifact(error),
        Error::Registry(_) | Error::Internal(_) => Verdict::new(Code::Internal),
    }
}

fn stopped(error: &StoppedBy) -> Verdict {
    match error {
        StoppedBy::Engine(error) => engine(error),
        StoppedBy::Deadline { .. } => Verdict::new(Code::DeadlineExceeded),
        StoppedBy::Shutdown => Verdict::new(Code::Unavailable),
    }
}

fn engine(error: &SandboxError) -> Verdict {
    match error {
        SandboxError::Artifact { reason, .. } => bad_request([("chunk".to_owned(), reason.clone())]),
        SandboxError::Manifest { field, reason } => {
            bad_request([(convert::proto_field(field), reason.clone())])
        }
        SandboxError::Unavailable { engine, reason } => precondition("ENGINE", engine.as_str(), reason),
        SandboxError::Capacity { .. } => quota("max-sandboxes", error),
        SandboxError::Deadline { .. } => Verdict::new(Code::DeadlineExceeded),
        SandboxError::MemoryLimit { .. } => quota("manifest.memory_bytes", error),
        SandboxError::OutputLimit { .. } => quota("manifest.output_bytes", error),
        SandboxError::Cancelled => Verdict::new(Code::Cancelled),
        SandboxError::Host { .. } => Verdict::new(Code::Internal),
    }
}

fn session(error: &SessionError) -> Verdict {
    match error {
        SessionError::Unsupported { .. } => Verdict::new(Code::Unimplemented),
        SessionError::Command { reason, .. } => bad_request([("start.args".to_owned(), reason.clone())]),
        SessionError::File { kind, reason, .. } => match kind {
            FileFailure::NotFound => Verdict::new(Code::NotFound),
            FileFailure::Invalid => bad_request([("path".to_owned(), reason.clone())]),
            FileFailure::Denied => Verdict::new(Code::PermissionDenied),
            FileFailure::Full => quota("files", error),
            FileFailure::Other => Verdict::new(Code::Internal),
        },
        SessionError::Busy(reason) | SessionError::Ended(reason) => precondition("SANDBOX", "", reason),
        SessionError::Engine(error) => engine(error),
    }
}

fn artifact(error: &ArtifactError) -> Verdict {
    match error {
        ArtifactError::TooLarge { .. } => quota("max-artifact", error),
        ArtifactError::Unpack(UnpackError::TooLarge { flag, .. }) => {
            quota(flag.trim_start_matches('-'), error)
        }
        ArtifactError::Unpack(UnpackError::Archive(_) | UnpackError::Entry { .. }) => {
            bad_request([("chunk".to_owned(), error.to_string())])
        }
        ArtifactError::Io(_) | ArtifactError::Unpack(UnpackError::Host { .. }) => {
            Verdict::new(Code::Internal)
        }
    }
}

fn bad_request(fields: impl IntoIterator<Item = (String, String)>) -> Verdict {
    let violation =
        |(field, description)| pb::bad_request::FieldViolation { field, description, ..Default::default() };
    let field_violations = fields.into_iter().map(violation).collect();
    Verdict::new(Code::InvalidArgument).with(&pb::BadRequest { field_violations })
}

fn precondition(kind: &str, subject: &str, description: &str) -> Verdict {
    let violation = pb::precondition_failure::Violation {
        r#type: kind.to_owned(),
        subject: subject.to_owned(),
        description: description.to_owned(),
    };
    Verdict::new(Code::FailedPrecondition).with(&pb::PreconditionFailure { violations: vec![violation] })
}

fn quota(subject: &str, error: &dyn std::error::Error) -> Verdict {
    let violation = pb::quota_failure::Violation {
        subject: subject.to_owned(),
        description: error.to_string(),
        ..Default::default()
    };
    Verdict::new(Code::ResourceExhausted).with(&pb::QuotaFailure { violations: vec![violation] })
}

fn retry_info(after: Duration) -> pb::RetryInfo {
    pb::RetryInfo { retry_delay: Some(convert::duration(after)) }
}

fn failure(run: &FailedRun) -> proto::InvocationFailure {
    let tail = &run.log_tail;
    proto::InvocationFailure {
        invocation_id: run.invocation.to_string(),
        log_tail: tail.slice(tail.len().saturating_sub(DETAIL_TAIL_BYTES)..),
        timings: Some(convert::timings(&run.timings, run.engine)),
    }
}

/// A code's name in google/rpc/code.proto.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;
    use crate::id::InvocationId;
    use crate::timings::Timings;

    #[test]
    fn fields_are_named_in_a_bad_request() {
        let status = grpc(&Error::field("manifest.pool.max", "must be at least 1"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, "manifest.pool.max");
        let http = http(&Error::field("timeout", "no"));
        assert_eq!((http.status, http.field.as_deref()), (StatusCode::BAD_REQUEST, Some("timeout")));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let retry_after = Duration::from_millis(20);
        let error = Error::QueueFull { function: "f".into(), max: 1, queue: 0, retry_after };
        let status = grpc(&error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(retry_after));
        assert!(status.get_details_quota_failure().is_some());
        assert_eq!(http(&error).status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn a_stopped_run_carries_its_failure_and_fits_into_a_header() {
        let run = FailedRun {
            invocation: InvocationId::next(),
            log_tail: Bytes::from(vec![b'x'; 16 << 10]),
            timings: Timings::default(),
            engine: novum_sandbox::EngineKind::Wasm,
        };
        let error = StoppedBy::Engine(SandboxError::Deadline { after: Duration::from_secs(1) });
        let status = grpc(&Error::Stopped { error, run: Box::new(run) });
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.details().len() * 4 / 3 < 8 << 10);
        let rpc = pb::Status::decode(status.details()).unwrap();
        let detail = rpc.details.iter().find(|any| any.type_url.ends_with("v1.InvocationFailure")).unwrap();
        let failure = proto::InvocationFailure::decode(detail.value.as_slice()).unwrap();
        assert_eq!((failure.log_tail.len(), failure.invocation_id.len()), (DETAIL_TAIL_BYTES, 16));
    }

    #[test]
    fn an_engines_manifest_field_is_spelled_as_in_the_request() {
        let error = SandboxError::Manifest { field: "share[0].source".into(), reason: "no".into() };
        let details = grpc(&Error::Engine(error)).get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, "manifest.shares[0].source");
    }
}
