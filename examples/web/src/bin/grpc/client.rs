//! The client: one call, on a poller of this thread's own.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use duopoll::tls::TlsConnector;
use duopoll::{Dialer, task};
use futures::stream;
use hyper::Uri;
use lexopt::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::PROGRAM;
use crate::channel::Channel;
use crate::deadlines::Deadlines;
use crate::echo::echo_client::EchoClient;
use crate::echo::{RepeatRequest, Text};

/// Whom the certificate has to be for.
const SERVER_NAME: &str = "localhost";

const USAGE: &str =
    "call [--connect ADDRESS] [--ca FILE] [--timeout SECONDS] say|repeat|join|chat|health TEXT...";

/// What the client is told.
struct Call {
    connect: String,
    ca: Option<PathBuf>,
    timeout: Option<Duration>,
    method: String,
    texts: Vec<String>,
}

/// Makes a call, and prints what it gives, a line each. Exits with 2 for bad arguments, with 1 if the call fails.
pub(crate) fn main() -> ExitCode {
    let call = match parse() {
        Ok(call) => call,
        Err(error) => {
            eprintln!("error: {error}; usage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    let made = task::block_on(make(call)).map_err(Into::into).and_then(|made| made);
    let Err(error) = made else { return ExitCode::SUCCESS };
    match error.downcast_ref::<Status>() {
        Some(status) => eprintln!("error: {:?}: {}", status.code(), status.message()),
        None => eprintln!("error: {error}"),
    }
    ExitCode::FAILURE
}

fn parse() -> Result<Call, lexopt::Error> {
    let mut call = Call {
        connect: PROGRAM.listen.to_owned(),
        ca: None,
        timeout: None,
        method: String::new(),
        texts: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    // The word that has brought us here.
    parser.next()?;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("connect") => call.connect = parser.value()?.string()?,
            Long("ca") => call.ca = Some(parser.value()?.into()),
            Long("timeout") => {
                let seconds = parser.value()?.parse()?;
                let timeout = Duration::try_from_secs_f64(seconds);
                call.timeout = Some(timeout.map_err(|error| error.to_string())?);
            }
            Value(value) if call.method.is_empty() => call.method = value.string()?,
            Value(value) => call.texts.push(value.string()?),
            argument => return Err(argument.unexpected()),
        }
    }
    match &*call.method {
        "say" | "repeat" | "join" | "chat" | "health" => Ok(call),
        method => Err(format!("there is no method {method:?}").into()),
    }
}

async fn make(call: Call) -> Result<(), Box<dyn Error>> {
    let connection = Dialer::new().dial(&call.connect).await?;
    let channel = match &call.ca {
        None => Channel::over(connection).await?,
        Some(ca) => {
            let connector = connector(ca)?;
            Channel::over(connector.connect(connection, SERVER_NAME.try_into()?).await?).await?
        }
    };
    let scheme = if call.ca.is_some() { "https" } else { "http" };
    let origin: Uri = format!("{scheme}://{SERVER_NAME}").parse()?;
    let mut health = HealthClient::with_origin(Deadlines(channel.clone()), origin.clone());
    let mut echo = EchoClient::with_origin(Deadlines(channel), origin);

    let timeout = call.timeout;
    let text = call.texts.join(" ");
    let times = call.texts.len() as u32;
    let texts = stream::iter(call.texts.into_iter().map(|text| Text { text }));
    match &*call.method {
        "say" => say(&echo.say(within(timeout, Text { text })).await?.into_inner()),
        // As often as it has words.
        "repeat" => {
            let request = RepeatRequest { text, times, pause_ms: 100 };
            say_each(echo.repeat(within(timeout, request)).await?.into_inner()).await
        }
        "join" => say(&echo.join(within(timeout, texts)).await?.into_inner()),
        "chat" => say_each(echo.chat(within(timeout, texts)).await?.into_inner()).await,
        _ => {
            let request = within(timeout, HealthCheckRequest { service: text });
            let status = health.check(request).await?.into_inner().status();
            say(&Text { text: status.as_str_name().to_owned() })
        }
    }
}

/// Trusts who has a certificate of those in a file.
fn connector(trusted: &Path) -> Result<TlsConnector, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(trusted)? {
        roots.add(certificate?)?;
    }
    // Named, since there may be another one in the build.
    let provider = Arc::new(ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::new(Arc::new(config)))
}

fn within<T>(timeout: Option<Duration>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

async fn say_each(mut texts: Streaming<Text>) -> Result<(), Box<dyn Error>> {
    while let Some(text) = texts.message().await? {
        say(&text)?;
    }
    Ok(())
}

fn say(text: &Text) -> Result<(), Box<dyn Error>> {
    Ok(writeln!(io::stdout(), "{}", text.text)?)
}
