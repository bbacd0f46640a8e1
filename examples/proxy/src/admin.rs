//! `/metrics` and `/healthz`.

use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use duopoll::hyper::Http;
use duopoll::{Builder, Connection, Kind, Limits, Service, WeakServer};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;

use crate::proxy::Proxy;
use crate::upstream::Upstream;

/// A struct of counters that can be gone through with their names.
macro_rules! figures {
    ($(#[$about:meta])* $name:ident { $($help:literal $figure:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $(pub(crate) $figure: $crate::proxy::Counter,)*
        }

        impl $name {
            /// The name, what it means, and how much.
            pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($figure), $help, self.$figure.get()),)*].into_iter()
            }
        }
    };
}
pub(crate) use figures;

/// How long a client may take until it asks for the first time; later it may have five times that.
const PATIENCE: Duration = Duration::from_secs(2);

/// What its connections may hold.
pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    // Whoever asks and does not read.
    limits.input_high_bytes = 16 << 10;
    limits.output_high_bytes = 64 << 10;
    limits
}

/// Tells of a proxy, and of the server that it is.
pub(crate) fn service(builder: Builder, proxy: Arc<Proxy>, server: WeakServer) -> Service {
    // Who says nothing has a place that whoever asks needs.
    let http = Http::new().begin_timeout(PATIENCE).header_read_timeout(5 * PATIENCE);
    builder.on_connection(async move |connection: Connection| {
        let (proxy, server) = (proxy.clone(), server.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let response = respond(request.uri().path(), &proxy, &server);
            async move { Ok::<_, Infallible>(response) }
        });
        http.serve(connection, answer).await.map_err(io::Error::other)
    })
}

fn respond(path: &str, proxy: &Proxy, server: &WeakServer) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/metrics" => (StatusCode::OK, metrics(proxy, server)),
        "/healthz" if proxy.is_ending() => {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".into())
        }
        "/healthz" if !proxy.upstreams.iter().any(Upstream::is_up) => {
            (StatusCode::SERVICE_UNAVAILABLE, "no upstream is up\n".into())
        }
        "/healthz" => (StatusCode::OK, "up\n".into()),
        _ => (StatusCode::NOT_FOUND, "/metrics and /healthz\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = if path == "/metrics" { "text/plain; version=0.0.4" } else { "text/plain" };
    let plain = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// What Prometheus reads.
fn metrics(proxy: &Proxy, server: &WeakServer) -> String {
    let mut text = String::new();
    for (name, help, value) in proxy.figures.each() {
        head(&mut text, &format!("proxy_{name}_total"), help, "counter");
        let _ = writeln!(text, "proxy_{name}_total {value}");
    }
    let upstreams = &proxy.upstreams;
    type Value<'a> = &'a dyn Fn(&Upstream) -> u64;
    let figures: [(&str, &str, &str, Value<'_>); 6] = [
        ("up", "Whether active checks find it up", "gauge", &|upstream| upstream.is_up().into()),
        ("ejected", "Whether it is left alone since it has failed", "gauge", &|upstream| {
            upstreams.is_ejected(upstream).into()
        }),
        ("active", "Clients that are connected to it, or about to be", "gauge", &|upstream| {
            upstream.active.load(Ordering::Relaxed) as u64
        }),
        ("connections_total", "Connections for clients", "counter", &|upstream| {
            upstream.connections.load(Ordering::Relaxed)
        }),
        ("failures_total", "Connections for clients that have failed", "counter", &|upstream| {
            upstream.failures.load(Ordering::Relaxed)
        }),
        ("ejections_total", "Times that it was begun to be left alone", "counter", &|upstream| {
            upstream.ejections.load(Ordering::Relaxed)
        }),
    ];
    for (name, help, kind, value) in figures {
        head(&mut text, &format!("proxy_upstream_{name}"), help, kind);
        for upstream in upstreams.iter() {
            let label = upstream.name.replace('\\', "\\\\").replace('"', "\\\"");
            let _ =
                writeln!(text, "proxy_upstream_{name}{{upstream=\"{label}\"}} {}", value(upstream));
        }
    }
    let Some(server) = server.upgrade() else { return text };
    for (prefix, figure) in server
        .server_stats()
        .figures()
        .map(|figure| ("server", figure))
        .chain(server.stats().figures().map(|figure| ("pollers", figure)))
    {
        let (kind, end) = match figure.kind {
            Kind::Counter => ("counter", "_total"),
            _ => ("gauge", ""),
        };
        let name = format!("duopoll_{prefix}_{}{end}", figure.name);
        head(&mut text, &name, figure.help, kind);
        let _ = writeln!(text, "{name} {}", figure.value);
    }
    text
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
