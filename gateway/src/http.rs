//! The plain HTTP face of the same gateway: invoke with a body, list, health, metrics. docs/api.md describes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use novum_sandbox::{ExitStatus, Input};
use serde_json::json;
use tonic::{Code, Status};

use crate::core::Core;
use crate::dispatch::{Call, Done};
use crate::error::Error;
use crate::{expose, json, status};

const INVOCATION_ID: HeaderName = HeaderName::from_static("novum-invocation-id");
const EXIT_STATUS: HeaderName = HeaderName::from_static("novum-exit-status");
const FAULT: HeaderName = HeaderName::from_static("novum-fault");
const ENGINE: HeaderName = HeaderName::from_static("novum-engine");
const COLD: HeaderName = HeaderName::from_static("novum-cold");
const VERSION: HeaderName = HeaderName::from_static("novum-version");
const TIMEOUT_MS: HeaderName = HeaderName::from_static("novum-timeout-ms");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const ENV_PREFIX: &str = "novum-env-";

type Pairs = Query<Vec<(String, String)>>;

/// Every HTTP path.
pub fn router(core: Arc<Core>) -> axum::Router {
    axum::Router::new()
        .route("/v1/functions", get(list))
        .route("/v1/functions/{target}", post(invoke).get(describe))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .with_state(core)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let said = status::http(&self);
        let mut body = json!({ "code": said.code, "message": said.message });
        if let Some(field) = said.field {
            body["field"] = field.into();
        }
        if let Self::Stopped { run, .. } = &self {
            body["invocation_id"] = run.invocation.to_string().into();
            body["log_tail"] = String::from_utf8_lossy(&run.log_tail).into();
        }
        let mut response = (said.status, Json(body)).into_response();
        if let Self::Stopped { run, .. } = &self {
            let headers = response.headers_mut();
            headers.insert(INVOCATION_ID, text(&run.invocation.to_string()));
            headers.insert(SERVER_TIMING, text(&server_timing(&run.timings)));
        }
        if let Some(after) = said.retry_after {
            // Whole seconds (RFC 9110 §10.2.3), at least the time asked for.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Header values here hold digits, names and punctuation only.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("?"))
}

/// What an invocation asks for besides its payload.
#[derive(Debug, Default)]
struct Options {
    version: u64,
    timeout: Option<Duration>,
    env: Vec<(String, String)>,
    env_without_case: bool,
}

impl Options {
    fn read(headers: &HeaderMap, pairs: Vec<(String, String)>) -> Result<Self, Error> {
        let mut options = Self::default();
        for (name, value) in headers {
            let value = || {
                value.to_str().map_err(|_| {
                    Error::field(name.as_str(), "must be visible ASCII; use the query for the rest")
                })
            };
            if *name == VERSION {
                options.version = number(name.as_str(), value()?)?;
            } else if *name == TIMEOUT_MS {
                options.timeout = Some(Duration::from_millis(number(name.as_str(), value()?)?));
            } else if let Some(variable) = name.as_str().strip_prefix(ENV_PREFIX) {
                options.env_without_case = true;
                options.env.push((variable.to_owned(), value()?.to_owned()));
            }
        }
        for (name, value) in pairs {
            match name.as_str() {
                "version" => options.version = number("version", &value)?,
                "timeout_ms" => options.timeout = Some(Duration::from_millis(number("timeout_ms", &value)?)),
                other => match other.strip_prefix("env.") {
                    Some(variable) => options.env.push((variable.to_owned(), value)),
                    None => {
                        return Err(Error::field(
                            other,
                            "is no query parameter; version, timeout_ms and env.NAME are",
                        ));
                    }
                },
            }
        }
        Ok(options)
    }
}

fn number(field: &str, value: &str) -> Result<u64, Error> {
    value.parse().map_err(|_| Error::field(field, format!("must be a whole number, not {value:?}")))
}

async fn invoke(
    State(core): State<Arc<Core>>,
    Path(target): Path<String>,
    Query(pairs): Pairs,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let Some(function) = target.strip_suffix(":invoke") else {
        return Err(Error::field("path", format!("POST to /v1/functions/{target}:invoke")));
    };
    let options = Options::read(&headers, pairs)?;
    let payload = payload(&core, &headers, body).await?;
    let call = Call {
        function,
        version: options.version,
        env: options.env,
        env_without_case: options.env_without_case,
        timeout: options.timeout,
        arrived: Instant::now(),
        input: Input::Bytes(payload),
        output: None,
        log: None,
    };
    Ok(reply(core.invoke(call).await?))
}

/// The body, never more of it than the limit.
async fn payload(core: &Core, headers: &HeaderMap, body: Body) -> Result<Bytes, Error> {
    let limit_bytes = core.config().max_payload_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit_bytes as u64) {
        return Err(Error::PayloadTooLarge { limit_bytes });
    }
    match Limited::new(body, limit_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::PayloadTooLarge { limit_bytes })
        }
        Err(error) => Err(Error::field("body", format!("could not be read: {error}"))),
    }
}

fn reply(done: Done) -> Response {
    let status = if done.exit.success() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    let mut response = (status, done.output).into_response();
    let headers = response.headers_mut();
    headers.insert(INVOCATION_ID, text(&done.invocation.to_string()));
    headers.insert(ENGINE, HeaderValue::from_static(done.engine.as_str()));
    headers.insert(COLD, HeaderValue::from_static(if done.timings.cold { "true" } else { "false" }));
    headers.insert(VERSION, done.version.into());
    headers.insert(SERVER_TIMING, text(&server_timing(&done.timings)));
    match done.exit {
        ExitStatus::Code(code) => drop(headers.insert(EXIT_STATUS, code.into())),
        ExitStatus::Fault(fault) => {
            headers.insert(EXIT_STATUS, HeaderValue::from_static("fault"));
            let words = format!("{}: {}", fault.kind, fault.message);
            let printable: String =
                words.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).take(400).collect();
            headers.insert(FAULT, text(&printable));
        }
    }
    response
}

/// The parts, then the clocks, in milliseconds (W3C Server Timing).
fn server_timing(timings: &crate::timings::Timings) -> String {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let clocks = &timings.clocks;
    let parts = [
        ("queued", Some(timings.queued)),
        ("start", Some(timings.start)),
        ("run", Some(timings.run)),
        ("sandbox-ready", Some(clocks.ready)),
        ("guest-resumed", clocks.resumed),
        ("first-byte", clocks.first_byte),
        ("answered", Some(clocks.answered)),
    ];
    let given = parts.into_iter().filter_map(|(name, time)| Some(format!("{name};dur={:.3}", ms(time?))));
    given.collect::<Vec<_>>().join(", ")
}

async fn describe(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    Query(pairs): Pairs,
) -> Result<Json<serde_json::Value>, Error> {
    let mut version = 0;
    for (key, value) in pairs {
        match key.as_str() {
            "version" => version = number("version", &value)?,
            _ => return Err(Error::field(key, "is no query parameter; version is")),
        }
    }
    Ok(Json(json::function(&*core.functions().find(&name, version)?)))
}

async fn list(State(core): State<Arc<Core>>, Query(pairs): Pairs) -> Result<Json<serde_json::Value>, Error> {
    let (mut size, mut token) = (0, String::new());
    for (key, value) in pairs {
        match key.as_str() {
            "page_size" => size = u32::try_from(number("page_size", &value)?).unwrap_or(u32::MAX),
            "page_token" => token = value,
            _ => return Err(Error::field(key, "is no query parameter; page_size and page_token are")),
        }
    }
    let page = core.functions().page(size, &token)?;
    let functions: Vec<_> = page.items.iter().map(|deployment| json::function(deployment)).collect();
    Ok(Json(json!({ "functions": functions, "next_page_token": page.next })))
}

async fn healthz(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
    if core.draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ok\n") }
}

async fn metrics(State(core): State<Arc<Core>>) -> Result<Response, Error> {
    let page = expose::page(&core).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, expose::CONTENT_TYPE)], page).into_response())
}

async fn unknown_path(method: http::Method, uri: http::Uri, headers: HeaderMap) -> Response {
    let grpc =
        headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        let status = Status::new(Code::Unimplemented, format!("this gateway has no method {}", uri.path()));
        return status.into_http::<Body>();
    }
    let message = format!(
        "there is no {method} {}; there are POST /v1/functions/NAME:invoke, GET /v1/functions, GET /v1/functions/NAME, \
         GET /healthz and GET /metrics",
        uri.path()
    );
    (StatusCode::NOT_FOUND, Json(json!({ "code": "NOT_FOUND", "message": message }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
        pairs.collect()
    }

    #[test]
    fn options_come_from_headers_and_query() {
        let headers = headers(&[
            ("novum-version", "2"),
            ("novum-timeout-ms", "50"),
            ("novum-env-lang", "C"),
            ("accept", "*/*"),
        ]);
        let pairs = vec![("timeout_ms".into(), "70".into()), ("env.A_b".into(), "ä".into())];
        let options = Options::read(&headers, pairs).unwrap();
        assert_eq!((options.version, options.timeout), (2, Some(Duration::from_millis(70))));
        assert_eq!(options.env, [("lang".into(), "C".into()), ("A_b".into(), "ä".into())]);
        assert!(options.env_without_case);
    }

    #[test]
    fn bad_options_are_named() {
        for (headers, pairs, field) in [
            (headers(&[("novum-timeout-ms", "soon")]), vec![], "novum-timeout-ms"),
            (headers(&[("novum-version", "-1")]), vec![], "novum-version"),
            (HeaderMap::new(), vec![("tiemout_ms".to_owned(), "1".to_owned())], "tiemout_ms"),
        ] {
            let error = Options::read(&headers, pairs).unwrap_err();
            assert!(matches!(&error, Error::Fields(fields) if fields[0].field == field), "{error}");
        }
    }
}
