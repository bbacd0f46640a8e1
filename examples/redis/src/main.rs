//! A server that speaks the Redis protocol: the usual commands on strings, lists, sets, hashes and sorted sets, transactions,
//! and messages to those who have subscribed.
//!
//! ```text
//! cargo run --release -p duopoll-redis
//! redis-cli -p 6380 set greeting hello
//! redis-benchmark -p 6380 -q
//! ```
//!
//! The life of a request: [`serving`] has it found by [`resp`], where it lies in the connection's input; [`commands`] looks it
//! up and runs it on the [`store`], or has it wait with the [`transaction`] that it belongs to; [`reply`] stages the answer. All
//! requests that have arrived together are answered with one flush. What a connection has said is in its [`session`], what the
//! others may know of it is its [`client`], with the [`outbox`] for messages that it has not asked for. Nothing is persisted,
//! and there is one database.

mod client;
mod clients;
mod clock;
mod commands;
mod encoding;
#[path = "../../common/flags.rs"]
mod flags;
mod glob;
mod interest;
mod keyspace;
mod numbers;
mod outbox;
mod reply;
mod resp;
mod serving;
mod session;
mod stats;
mod store;
mod transaction;
mod values;

use std::process::ExitCode;

use duopoll::Connection;

use resp::BULK_BYTES_MAX;
use serving::{IN_PLACE_BYTES_MAX, serve};
use session::Session;
use store::SharedStore;

const PROGRAM: flags::Program = flags::Program {
    about: "A server that speaks the Redis protocol (RESP2 and RESP3).",
    listen: "127.0.0.1:6380",
    tls: false,
    password: true,
};

fn main() -> ExitCode {
    flags::main(&PROGRAM, |flags| {
        let store = SharedStore::start(flags.password())?;
        let entered = store.clone();
        let service = flags
            .builder()
            // A value is read as a whole.
            .message_bytes_max(BULK_BYTES_MAX + IN_PLACE_BYTES_MAX)
            .on_request_with(
                async move |connection: &mut Connection| Ok(Session::new(&entered, connection)),
                async move |connection: &mut Connection, session: &mut Session| {
                    serve(&store, session, connection).await
                },
            );
        service.serve(flags.listener()?)
    })
}
