//! What a connection's requests meet first: gRPC paths go straight to their service, everything else to the HTTP
//! router. One string comparison instead of a router on the way of every invocation.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::Service;

use crate::core::Core;

type BoxFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The gateway's whole surface; a clone for each connection is cheap.
#[derive(Clone)]
pub struct Front {
    router: axum::Router,
}

impl Front {
    /// Everything that `core` answers.
    #[must_use]
    pub fn new(_core: &Arc<Core>) -> Self {
        Self { router: axum::Router::new().route("/healthz", axum::routing::get(|| async { "ok\n" })) }
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn call(&self, request: Request<Incoming>) -> Reply {
        let mut router = self.router.clone();
        Reply { inner: Box::pin(async move { Ok(router.call(request).await?.map(Body::new)) }) }
    }
}

/// The reply to one request.
pub struct Reply {
    inner: BoxFuture,
}

impl Future for Reply {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}
