//! A WebSocket that sends back what it is sent.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use duopoll::task::spawn_local;
#[cfg(feature = "rustls")]
use duopoll::tls::TlsConnection;
use duopoll::{Connection, Control};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Changes from HTTP/1 to the WebSocket protocol, and goes on as a task of the poller's.
pub(crate) async fn accept(mut request: Request) -> Response {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let (Some(key), true) = (key, has(headers, UPGRADE, "websocket")) else {
        return (StatusCode::UPGRADE_REQUIRED, [(SEC_WEBSOCKET_VERSION, "13")]).into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    // If the peer breaks the rules, its connection ends, and there is nobody to tell.
    drop(spawn_local(go_on(upgrade)));
    let head = [(CONNECTION, "upgrade"), (UPGRADE, "websocket")];
    (StatusCode::SWITCHING_PROTOCOLS, head, [(SEC_WEBSOCKET_ACCEPT, key)], Body::empty())
        .into_response()
}

async fn go_on(upgrade: OnUpgrade) -> Result<(), Error> {
    let Ok(upgraded) = upgrade.await else { return Ok(()) };
    // What hyper has read of it already comes along.
    match upgraded.downcast::<Connection>() {
        Ok(parts) => echo(parts.io.control(), parts.io, parts.read_buf).await,
        #[cfg(feature = "rustls")]
        Err(upgraded) => match upgraded.downcast::<TlsConnection>() {
            Ok(parts) => echo(parts.io.control(), parts.io, parts.read_buf).await,
            Err(_) => Ok(()),
        },
        #[cfg(not(feature = "rustls"))]
        Err(_) => Ok(()),
    }
}

async fn echo(
    control: Control,
    io: impl AsyncRead + AsyncWrite + Unpin,
    read: Bytes,
) -> Result<(), Error> {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_partially_read(io, read.into(), Role::Server, Some(limits));
    let mut socket = socket.await;
    let mut draining = control.draining();
    let mut is_told = false;
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = &mut draining, if !is_told => {
                is_told = true;
                let goes = CloseFrame { code: CloseCode::Away, reason: "the server ends".into() };
                socket.close(Some(goes)).await?;
                continue;
            }
        };
        match message {
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                socket.send(message).await?;
            }
            Some(message) => drop(message?),
            None => return Ok(()),
        }
    }
}

fn has(headers: &HeaderMap, name: HeaderName, value: &str) -> bool {
    headers.get(name).is_some_and(|has| has.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
}
