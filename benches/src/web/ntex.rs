//! ntex on its own io_uring runtime: a function for its HTTP service.

use std::io;

use ntex::http::{HttpService, Request, Response};
use ntex::util::Ready;

use super::Options;
use super::shape::{Ask, CATALOGUE, HELLO};

/// One worker beside the thread that accepts.
pub fn serve(options: &Options) -> io::Result<()> {
    let listen = options.listen;
    ntex::rt::System::new("duopoll-compare", ntex::rt::DefaultRuntime).block_on(async move {
        ntex::server::build()
            .workers(1)
            .disable_signals()
            .bind("bench", listen, async |_| {
                HttpService::new(|request| Ready::from(answer(&request)))
            })?
            .run()
            .await
    })
}

fn answer(request: &Request) -> io::Result<Response> {
    let path = request.path();
    if path == Ask::Hello.path() {
        Ok(Response::Ok().content_type("text/plain").body(HELLO))
    } else if path == Ask::Json.path() {
        let body = serde_json::to_vec(&*CATALOGUE)?;
        Ok(Response::Ok().content_type("application/json").body(body))
    } else {
        Ok(Response::NotFound().finish())
    }
}
