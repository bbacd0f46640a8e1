//! What the server serves: the calls of `echo.proto`, health, and reflection.

use std::io;
use std::time::Duration;

use duopoll::time;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::deadlines::Deadlines;
use crate::echo::echo_server::{Echo, EchoServer};
use crate::echo::{RepeatRequest, Text};
use crate::reflection::Reflection;

/// How long the text may be that is put together of many, in bytes.
const JOINED_BYTES_MAX: usize = 1 << 20;

/// Everything, and the way to tell what is healthy.
pub(crate) fn routes() -> io::Result<(Deadlines<Routes>, HealthReporter)> {
    let (reporter, health) = health_reporter();
    // Nobody else has it yet, so there is nothing to wait for.
    pollster::block_on(reporter.set_serving::<EchoServer<Echoes>>());
    let reflection = Reflection::new().map_err(io::Error::other)?;
    let routes = Routes::new(EchoServer::new(Echoes))
        .add_service(health)
        .add_service(reflection.clone().v1())
        .add_service(reflection.v1alpha());
    Ok((Deadlines(routes.prepare()), reporter))
}

/// Says that no service serves any more, and ends the streams of those who watch, who would hold up the end.
pub(crate) async fn retire(mut reporter: HealthReporter) {
    reporter.set_not_serving::<EchoServer<Echoes>>().await;
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    reporter.clear_service_status(<EchoServer<Echoes> as tonic::server::NamedService>::NAME).await;
    reporter.clear_service_status("").await;
}

/// The calls. Each is a task on the poller of its connection; that its futures are `Send` is tonic's wish.
pub(crate) struct Echoes;

type Texts = BoxStream<'static, Result<Text, Status>>;

#[tonic::async_trait]
impl Echo for Echoes {
    async fn say(&self, request: Request<Text>) -> Result<Response<Text>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type RepeatStream = Texts;

    async fn repeat(&self, request: Request<RepeatRequest>) -> Result<Response<Texts>, Status> {
        let RepeatRequest { text, times, pause_ms } = request.into_inner();
        let pause = Duration::from_millis(pause_ms.into());
        let texts = stream::iter(0..times).then(move |_| {
            let text = text.clone();
            async move {
                if !pause.is_zero() {
                    time::sleep(pause).await;
                }
                Ok(Text { text })
            }
        });
        Ok(Response::new(texts.boxed()))
    }

    async fn join(&self, request: Request<Streaming<Text>>) -> Result<Response<Text>, Status> {
        let mut texts = request.into_inner();
        let mut joined = String::new();
        while let Some(Text { text }) = texts.message().await? {
            if joined.len() + text.len() > JOINED_BYTES_MAX {
                let why = format!("more than {JOINED_BYTES_MAX} bytes");
                return Err(Status::resource_exhausted(why));
            }
            joined.push_str(&text);
        }
        Ok(Response::new(Text { text: joined }))
    }

    type ChatStream = Streaming<Text>;

    async fn chat(
        &self,
        request: Request<Streaming<Text>>,
    ) -> Result<Response<Streaming<Text>>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}
