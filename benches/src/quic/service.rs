//! What a server does with a stream, on quinn's.

use std::error::Error;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use super::shape::{Ask, Progress};

/// The most that a request has which is answered at once.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What is handed to a stream at once.
const CHUNK: &[u8] = &[b'x'; 64 << 10];

/// What a stream or what came on it made impossible.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Answers what comes on a stream. What becomes of one is for the client to say.
pub async fn answer(ask: Ask, stream: (SendStream, RecvStream)) {
    let _ = match ask {
        Ask::Echo => echo(stream).await,
        Ask::Receive => receive(stream).await,
        Ask::Send => send(stream).await,
    };
}

async fn echo((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    let request = receive.read_to_end(REQUEST_BYTES_MAX).await?;
    send.write_chunk(request.into()).await?;
    Ok(send.finish()?)
}

async fn receive((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    let mut progress = Progress::default();
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        for _ in 0..progress.advance(chunk.bytes.len()) {
            send.write_all(&[1]).await?;
        }
    }
    Ok(send.finish()?)
}

async fn send((mut send, mut receive): (SendStream, RecvStream)) -> Result<(), Failure> {
    for chunk in chunks(wanted(&receive.read_to_end(REQUEST_BYTES_MAX).await?)?) {
        send.write_chunk(chunk).await?;
    }
    Ok(send.finish()?)
}

/// How many bytes a request wants.
pub fn wanted(request: &[u8]) -> Result<u64, Failure> {
    Ok(u64::from_le_bytes(request.try_into()?))
}

/// So many bytes, in pieces that lie ready.
pub fn chunks(mut bytes: u64) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let len = bytes.min(CHUNK.len() as u64);
        bytes -= len;
        (len > 0).then(|| Bytes::from_static(&CHUNK[..len as usize]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_bytes_are_sent_as_are_wanted() {
        let sent = |bytes: u64| {
            let wanted = wanted(&bytes.to_le_bytes()).unwrap();
            chunks(wanted).map(|chunk| chunk.len() as u64).sum::<u64>()
        };
        let long = 3 * CHUNK.len() as u64 + 1;
        assert_eq!([0, 1, long].map(sent), [0, 1, long]);
        assert!(wanted(&[0; 7]).is_err());
    }
}
