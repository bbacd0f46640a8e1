//! Asks a server for its figures: a client of HTTP/1.1, with duopoll itself.
//!
//! A [`Dialer`] knows names, Unix sockets and timeouts, where std's streams would need three kinds of code; and the poller is this
//! thread, while the terminal has the other. One connection serves for all questions, so that looking changes little of what is seen.
//!
//! Whatever answers is not trusted: heads, bodies and the time are bounded, and a body is as long as its head says or an error.

use std::io;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use duopoll::time::{self, MissedTicks};
use duopoll::{Connection, Dialer, task};

use crate::model::Sample;
use crate::parse;

/// How long all answers of a sample may take.
const PATIENCE: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A thousand pollers tell less.
const BODY_BYTES_MAX: usize = 8 << 20;

/// Whom to ask, and the connection to it.
#[derive(Debug)]
pub(crate) struct Source {
    target: String,
    connection: Option<Connection>,
    patience: Duration,
}

/// What was answered.
struct Answer {
    status: u16,
    text: String,
    /// Another question may follow on the connection.
    goes_on: bool,
}

impl Source {
    pub(crate) fn new(target: &str) -> Source {
        Source { target: target.to_owned(), connection: None, patience: PATIENCE }
    }

    /// The figures as they are now, or why not.
    pub(crate) async fn sample(&mut self) -> Result<Sample, String> {
        let patience = self.patience;
        let told = match time::timeout(patience, self.ask()).await {
            Ok(told) => told,
            Err(_) => Err(format!("no answer within {} s", patience.as_secs_f64())),
        };
        // Whatever is still to come is no answer to the next question.
        if told.is_err() {
            self.connection = None;
        }
        told
    }

    async fn ask(&mut self) -> Result<Sample, String> {
        let figures = self.get("/metrics").await.map_err(|error| error.to_string())?;
        let at = Instant::now();
        if figures.status != 200 {
            return Err(format!("/metrics: HTTP status {}", figures.status));
        }
        let figures =
            parse::figures(&figures.text).map_err(|error| format!("/metrics: {error}"))?;
        let connections = self.get("/connections").await.map_err(|error| error.to_string())?;
        let connections = match connections.status {
            200 => {
                let told = parse::connections(&connections.text);
                Some(told.map_err(|error| format!("/connections: {error}"))?)
            }
            // Not everybody tells of them.
            404 => None,
            status => return Err(format!("/connections: HTTP status {status}")),
        };
        Ok(Sample { at, figures, connections })
    }

    async fn get(&mut self, path: &str) -> io::Result<Answer> {
        // One that was kept may have ended meanwhile.
        if let Some(mut kept) = self.connection.take() {
            if let Ok(answer) = exchange(&mut kept, path).await {
                self.connection = answer.goes_on.then_some(kept);
                return Ok(answer);
            }
        }
        let mut connection = Dialer::new().dial(&self.target).await?;
        let answer = exchange(&mut connection, path).await?;
        self.connection = answer.goes_on.then_some(connection);
        Ok(answer)
    }
}

/// One question and its answer.
async fn exchange(connection: &mut Connection, path: &str) -> io::Result<Answer> {
    // Nobody has virtual hosts for this.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    connection.write(request.as_bytes())?;
    connection.flush().await?;
    let answer = read_answer(connection).await;
    answer.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("the answer is cut"),
        _ => error,
    })
}

async fn read_answer(connection: &mut Connection) -> io::Result<Answer> {
    let mut left = HEAD_BYTES_MAX;
    let first = read_line(connection, &mut left).await?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    let status = status.and_then(|status| status.parse().ok());
    let status: u16 = status.ok_or_else(|| wrong("the answer is no HTTP/1"))?;
    let (mut length, mut goes_on) = (None, first.starts_with("HTTP/1.1"));
    loop {
        let line = read_line(connection, &mut left).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| wrong("the answer has no head of HTTP's"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let bytes = value.parse::<usize>().ok().filter(|_| length.is_none());
            length = Some(bytes.ok_or_else(|| wrong("the answer's length is no number"))?);
        } else if name.eq_ignore_ascii_case("connection") {
            goes_on &= !value.to_ascii_lowercase().contains("close");
        }
    }
    let length = length.ok_or_else(|| wrong("the answer does not say how long it is"))?;
    if length > BODY_BYTES_MAX {
        return Err(wrong("the answer is too long"));
    }
    let body = connection.next(length).await?;
    let text = std::str::from_utf8(&body).map_err(|_| wrong("the answer is no text"))?;
    Ok(Answer { status, text: text.to_owned(), goes_on })
}

async fn read_line(connection: &mut Connection, left: &mut usize) -> io::Result<String> {
    let line = connection.until(b'\n', *left).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => wrong("the answer's head is too long"),
        _ => error,
    })?;
    *left -= line.len();
    let line = std::str::from_utf8(&line).map_err(|_| wrong("the answer's head is no text"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Two samples, that far from each other: of one there are no rates.
pub(crate) fn twice(target: &str, interval: Duration) -> Result<[Sample; 2], String> {
    let asked = task::block_on(async {
        let mut source = Source::new(target);
        let first = source.sample().await?;
        time::sleep(interval).await;
        Ok([first, source.sample().await?])
    });
    asked.map_err(|error| error.to_string())?
}

/// Asks that often, until nobody wants to know any more.
pub(crate) fn follow(
    target: &str,
    interval: Duration,
    told: &Sender<Result<Sample, String>>,
) -> io::Result<()> {
    task::block_on(async {
        let mut source = Source::new(target);
        let mut ticks = time::interval(interval).missed_ticks(MissedTicks::Delay);
        loop {
            ticks.tick().await;
            if told.send(source.sample().await).is_err() {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Has somebody answer whatever they like, once for each connection, and asks them.
    fn answered_by(answer: impl Fn(&mut dyn Write) + Send + 'static) -> Result<Sample, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let target = listener.local_addr().expect("bound").to_string();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let _ = stream.read(&mut [0; 1024]);
                answer(&mut stream);
            }
        });
        let mut source = Source::new(&target);
        source.patience = Duration::from_secs(1);
        task::block_on(source.sample()).expect("a poller")
    }

    fn said(answer: &'static [u8]) -> Result<Sample, String> {
        answered_by(move |stream| {
            let _ = stream.write_all(answer);
        })
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let wrong: [(&[u8], &str); 12] = [
            (b"", "cut"),
            (b"HTTP/1.1 200 OK\r\n", "cut"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nduopoll_x", "cut"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP/1"),
            (b"HTTP/1.1 \xc3\xa9\xc3\xa9\r\n", "no HTTP/1"),
            (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "no head"),
            (b"HTTP/1.1 200 OK\r\n\r\n", "how long it is"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no number"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", "too long"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd", "no text"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes", "line 1 is no figure: yes"),
            (b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n", "HTTP status 503"),
        ];
        for (answer, expected) in wrong {
            let error = said(answer).expect_err("no answer");
            assert!(error.contains(expected), "{error}, not {expected}");
        }
    }

    #[test]
    fn an_endless_answer_is_bounded() {
        let endless = |piece: &'static [u8]| {
            answered_by(move |stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                while stream.write_all(piece).is_ok() {}
            })
        };
        for piece in [&b"x: y\r\n"[..], b"xxxx"] {
            let error = endless(piece).expect_err("no end");
            assert!(error.contains("head is too long"), "{error}");
        }
    }

    #[test]
    fn who_is_silent_is_waited_for_for_a_while() {
        let error = answered_by(|_| thread::park()).expect_err("no answer");
        assert_eq!(error, "no answer within 1 s");
    }

    #[test]
    fn who_is_not_there_is_an_error_that_names_him() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let target = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let error = twice(&target, Duration::ZERO).expect_err("nobody is there");
        assert!(error.contains(&target), "{error}");
    }
}
