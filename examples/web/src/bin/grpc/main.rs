//! A gRPC server: tonic on the pollers, with TLS or without, with health and reflection; and a client. There is no runtime of
//! tokio's in either.
//!
//! ```text
//! cargo run --release -p duopoll-web --bin grpc -- --listen 127.0.0.1:50051 --pollers 2
//! grpcurl -plaintext 127.0.0.1:50051 list
//! grpcurl -plaintext -d '{"text": "hello"}' 127.0.0.1:50051 duopoll.echo.v1.Echo/Say
//! cargo run --release -p duopoll-web --bin grpc -- call say hello
//! ```
//!
//! With `--tls-certificate /tmp/localhost.pem` there, it is `grpcurl -cacert /tmp/localhost.pem localhost:50051 list` and
//! `call --ca /tmp/localhost.pem say hello` here.
//!
//! # What belongs to tonic, and what does not
//! `tonic::service::Routes` is a service of tower's, which [`Http::serve_tower`] serves; a client that tonic generates makes its
//! calls over whatever is such a service, as [`channel`] makes one of a connection. `tonic::transport`, which is not used, is a
//! server and a client on tokio's sockets, tasks and timers. What it does beside them is here in [`deadlines`].
//!
//! # The generated code
//! `echo.rs` is what tonic-prost-build makes of `echo.proto`; the test `grpc_generated` compares the two, and writes it.

mod channel;
mod client;
mod deadlines;
#[path = "../../../../common/flags.rs"]
mod flags;
mod reflection;
mod service;
#[path = "../../certificate.rs"]
mod tls;

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "it is generated")]
mod echo;

use std::process::ExitCode;

use duopoll::Connection;
use duopoll::hyper::Http;
use duopoll::task::TaskGroup;

const PROGRAM: flags::Program = flags::Program {
    about: "A gRPC server of a service that echoes, with health and reflection; with call in place of flags, its client.",
    listen: "127.0.0.1:50051",
    tls: true,
    password: false,
};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "call") {
        return client::main();
    }
    flags::main(&PROGRAM, |flags| {
        let (routes, health) = service::routes()?;
        let acceptor = flags.tls().map(|file| tls::acceptor(&["h2"], file)).transpose()?;
        let http = Http::new();
        let tasks = TaskGroup::new();
        let service =
            flags.builder().tasks(&tasks).on_connection(async move |connection: Connection| {
                match &acceptor {
                    None => http.serve_tower(connection, routes.clone()).await,
                    Some(acceptor) => {
                        let connection = acceptor.accept(connection).await?;
                        http.serve_tower(connection, routes.clone()).await
                    }
                }
            });
        let server = service.serve(flags.listener()?)?;
        let ends = tasks.clone();
        tasks.spawn(server.pollers(), move || async move {
            ends.closing().await;
            service::retire(health).await;
        });
        Ok(server)
    })
}
