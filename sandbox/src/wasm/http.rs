//! `wasi:http/incoming-handler` components.
//!
//! The payload is the body of `POST /`, the response's body is the output. A status from 200 to 299 is exit
//! code 0, any other is the exit code itself. Trailers and response headers have no place in the contract and
//! are dropped. What the component prints goes to the log. Requests of its own are refused.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{Either, select};
use http::header::{CONTENT_LENGTH, HOST};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use wasmtime::component::{InstancePre, Resource};
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};
use wasmtime_wasi_http::{RequestOptions, WasiBody, WasiHttpHooks, WasiHttpView};

use super::call::Call;
use super::image::Kind;
use super::preview2::Preview2;
use super::settings::host;
use super::stdin::Stdin;
use super::stdout::Stdout;
use super::tenant::Tenant;
use crate::engine::{ExitStatus, Fault, Input};
use crate::error::Error;

/// Refuses every request that a component wants to make.
pub(super) struct NoRequests;

type HttpError = wasmtime_wasi_http::Error;
type Transmission = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type Sent = Box<dyn Future<Output = Result<(http::Response<WasiBody>, Transmission), HttpError>> + Send>;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _sending: Transmission,
    ) -> Sent {
        Box::new(async { Err(HttpError::HttpRequestDenied) })
    }
}

/// A component that exports `wasi:http/incoming-handler`.
pub(super) struct Handler(ProxyPre<Tenant<Preview2>>);

impl Handler {
    /// # Errors
    /// What the component lacks, as a sentence.
    pub(super) fn new(pre: InstancePre<Tenant<Preview2>>) -> Result<Self, String> {
        ProxyPre::new(pre).map(Self).map_err(|error| format!("{error:#}"))
    }
}

type Response = Result<http::Response<HyperOutgoingBody>, ErrorCode>;

/// One request on its way.
pub(super) struct Exchange {
    request: Resource<HostIncomingRequest>,
    out: Resource<HostResponseOutparam>,
    response: oneshot::Receiver<Response>,
    stdout: Stdout,
}

impl Kind for Handler {
    type Wasi = Preview2;
    type Instance = Proxy;
    type Task = Exchange;

    fn engine(&self) -> &Engine {
        self.0.engine()
    }

    async fn instantiate(&self, store: &mut Store<Tenant<Preview2>>) -> wasmtime::Result<Proxy> {
        self.0.instantiate_async(store).await
    }

    fn touched(wasi: &Preview2) -> bool {
        wasi.touched()
    }

    fn enter(store: &mut Store<Tenant<Preview2>>, call: Call, input: Input) -> Result<Exchange, Error> {
        let mut ctx = call.context()?;
        ctx.stdout(call.stderr.clone());
        let tenant = store.data_mut();
        tenant.wasi.enter(ctx.build());
        let doing = "handing the request to the component";
        let request = request(call.function.manifest.name.as_str(), input)?;
        let request = tenant.http().new_incoming_request(Scheme::Http, request);
        let request = request.map_err(|error| host(doing, error))?;
        let (sender, response) = oneshot::channel();
        let out = tenant.http().new_response_outparam(sender).map_err(|error| host(doing, error))?;
        Ok(Exchange { request, out, response, stdout: call.stdout })
    }

    async fn run(
        store: &mut Store<Tenant<Preview2>>,
        proxy: Proxy,
        exchange: Exchange,
    ) -> wasmtime::Result<ExitStatus> {
        let Exchange { request, out, response, stdout } = exchange;
        let handler = proxy.wasi_http_incoming_handler();
        let handled = async {
            handler.call_handle(&mut *store, request, out).await?;
            // What it did not set or finish by now it never will: without this the reply would wait for it.
            store.data_mut().wasi.forget();
            Ok::<_, wasmtime::Error>(())
        };
        // Both at once: the component writes its body into a small buffer that the reply empties.
        match select(pin!(handled), pin!(reply(response, &stdout))).await {
            Either::Left((handled, replied)) => {
                handled?;
                replied.await
            }
            Either::Right((replied, handled)) => {
                let replied = replied?;
                handled.await?;
                Ok(replied)
            }
        }
    }
}

fn request(name: &str, input: Input) -> Result<http::Request<Incoming>, Error> {
    let mut request = http::Request::post("/").header(HOST, name);
    if let Input::Bytes(bytes) = &input {
        request = request.header(CONTENT_LENGTH, bytes.len());
    }
    request.body(Incoming::new(input)).map_err(|error| Error::host("making the request", error))
}

/// Passes the response on, as it comes.
async fn reply(response: oneshot::Receiver<Response>, stdout: &Stdout) -> wasmtime::Result<ExitStatus> {
    let response = match response.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => return Ok(fault(format!("the component answered with an error: {code:?}"))),
        Err(_) => return Ok(fault("the component ended without a response".into())),
    };
    let status = response.status();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(piece) = frame.into_data() {
                    stdout.send(piece).await?;
                }
            }
            Err(error) => return Ok(fault(format!("the response broke off: {error}"))),
        }
    }
    Ok(ExitStatus::Code(if status.is_success() { 0 } else { i32::from(status.as_u16()) }))
}

fn fault(message: String) -> ExitStatus {
    ExitStatus::Fault(Fault { kind: "http".into(), message })
}

/// The request's body.
struct Incoming {
    input: Stdin,
    length: Option<u64>,
}

impl Incoming {
    fn new(input: Input) -> Self {
        let length = match &input {
            Input::Bytes(bytes) => Some(bytes.len() as u64),
            Input::Stream(_) => None,
        };
        Self { input: Stdin::new(input), length }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.input.poll_piece(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
