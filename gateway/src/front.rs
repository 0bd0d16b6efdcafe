//! What a connection's requests meet first: gRPC paths go straight to their service, everything else to the HTTP
//! router. A few string comparisons instead of a router on the way of every invocation.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use novum_proto::gateway::v1::admin_server::{AdminServer, SERVICE_NAME as ADMIN};
use novum_proto::gateway::v1::functions_server::{FunctionsServer, SERVICE_NAME as FUNCTIONS};
use novum_proto::gateway::v1::sandboxes_server::{SERVICE_NAME as SANDBOXES, SandboxesServer};
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::core::Core;
use crate::error::Error;
use crate::service::admin::AdminService;
use crate::service::functions::FunctionsService;
use crate::service::sandboxes::{MAX_PIECE_BYTES, SandboxesService};
use crate::{http as plain, status};

/// What a message's fields may take besides its payload: names, an environment, framing.
const ENVELOPE_BYTES: usize = 256 << 10;

type BoxFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The gateway's whole surface; a clone for each connection is cheap.
#[derive(Clone)]
pub struct Front {
    functions: FunctionsServer<FunctionsService>,
    others: axum::Router,
    limit_bytes: usize,
}

impl Front {
    /// Everything that `core` answers, and what tells the health service about it.
    ///
    /// # Errors
    /// A descriptor set that cannot be read, which a build would have shown.
    pub async fn new(core: &Arc<Core>) -> Result<(Self, HealthReporter), tonic_reflection::server::Error> {
        let limit_bytes = core.config().max_payload_bytes;
        let functions = FunctionsServer::new(FunctionsService::new(Arc::clone(core)))
            .max_decoding_message_size(limit_bytes.saturating_add(ENVELOPE_BYTES))
            .max_encoding_message_size(usize::MAX);
        let (reporter, health) = tonic_health::server::health_reporter();
        set_serving(&reporter, true).await;
        let mut routes = Routes::from(plain::router(Arc::clone(core)));
        routes = routes
            .add_service(AdminServer::new(AdminService::new(Arc::clone(core))))
            .add_service(
                SandboxesServer::new(SandboxesService::new(Arc::clone(core)))
                    .max_decoding_message_size(MAX_PIECE_BYTES + ENVELOPE_BYTES),
            )
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        Ok((Self { functions, others: routes.into_axum_router(), limit_bytes }, reporter))
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(novum_proto::gateway::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Says of the gateway and of each of its services whether it serves.
pub async fn set_serving(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", FUNCTIONS, SANDBOXES, ADMIN] {
        reporter.set_service_status(service, status).await;
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn call(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().strip_prefix('/').unwrap_or_default();
        let to_functions = path.strip_prefix(FUNCTIONS).is_some_and(|method| method.starts_with('/'));
        let inner: BoxFuture = if to_functions {
            self.functions.clone().call(request)
        } else {
            let mut others = self.others.clone();
            Box::pin(async move { Ok(others.call(request).await?.map(Body::new)) })
        };
        Reply { inner, limit_bytes: self.limit_bytes }
    }
}

/// The reply to one request.
pub struct Reply {
    inner: BoxFuture,
    limit_bytes: usize,
}

impl Future for Reply {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let limit_bytes = self.limit_bytes;
        self.inner.as_mut().poll(cx).map_ok(|response| mend(response, limit_bytes))
    }
}

/// tonic says OUT_OF_RANGE (11) where a message is over its limit, in a reply that is nothing but trailers. The API
/// says RESOURCE_EXHAUSTED, with the limit's name and how to raise it.
fn mend(response: Response<Body>, limit_bytes: usize) -> Response<Body> {
    match response.headers().get("grpc-status") {
        Some(code) if code == "11" => status::grpc(&Error::PayloadTooLarge { limit_bytes }).into_http(),
        _ => response,
    }
}
