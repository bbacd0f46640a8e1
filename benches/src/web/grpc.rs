//! The gRPC service, as tonic's generator would write it, and its one message.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::shape::{Ask, MESSAGES};

/// `message Payload { bytes value = 1; }`, which is also google.protobuf.BytesValue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub value: Bytes,
}

/// `rpc Unary(Payload) returns (Payload)` gives back what it was given.
struct Unary;

impl UnaryService<Payload> for Unary {
    type Response = Payload;
    type Future = std::future::Ready<Result<Response<Payload>, Status>>;

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

/// `rpc Messages(Payload) returns (stream Payload)` gives it back many times.
struct Messages;

impl ServerStreamingService<Payload> for Messages {
    type Response = Payload;
    type ResponseStream = Repeated;
    type Future = std::future::Ready<Result<Response<Repeated>, Status>>;

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        let repeated = Repeated { payload: request.into_inner(), left: MESSAGES };
        std::future::ready(Ok(Response::new(repeated)))
    }
}

/// The same message again and again.
struct Repeated {
    payload: Payload,
    left: usize,
}

impl tonic::codegen::tokio_stream::Stream for Repeated {
    type Item = Result<Payload, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        Poll::Ready(Some(Ok(self.payload.clone())))
    }
}

/// The service `duopoll.Bench`.
#[derive(Clone, Copy)]
pub struct Bench;

impl NamedService for Bench {
    const NAME: &'static str = "duopoll.Bench";
}

impl<B> Service<http::Request<B>> for Bench
where
    B: HttpBody<Data: Send, Error: Into<StdError> + Send> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        if path == Ask::Unary.path() {
            Box::pin(async {
                let codec: ProstCodec<Payload, Payload> = ProstCodec::default();
                Ok(Grpc::new(codec).unary(Unary, request).await)
            })
        } else if path == Ask::Messages.path() {
            Box::pin(async {
                let codec: ProstCodec<Payload, Payload> = ProstCodec::default();
                Ok(Grpc::new(codec).server_streaming(Messages, request).await)
            })
        } else {
            Box::pin(async { Ok(Status::unimplemented("no such call").into_http()) })
        }
    }
}
