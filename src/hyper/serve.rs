//! A connection that hyper serves.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::hyper::body::{Body, Incoming};
use ::hyper::rt::{Read, Write};
use ::hyper::server::conn::{http1, http2};
use ::hyper::service::HttpService;
use duopoll_core::Clock as _;
use pin_project_lite::pin_project;

use crate::hyper::controlled::{Begun, Controlled, poll_begun, poll_next, unread};
use crate::hyper::run::LocalExecutor;
use crate::hyper::settings::{Settings, Versions};
use crate::poller::Handle;
use crate::time::{Sleep, now, sleep, sleep_until};
use crate::{Control, Watch};

type BoxError = Box<dyn Error + Send + Sync>;

/// A connection of HTTP/1 that asks for nothing for so long gives its buffers back, after two looks at the latest.
const IDLE: Duration = Duration::from_millis(200);

/// Looks are due at multiples of so many ticks, milliseconds: a poller with nothing else to do wakes up once for all of them.
const LOOKS_EVERY: u64 = 16;

pin_project! {
    /// What [`Http::serve`](super::Http::serve) gives. It is written by hand, since a connection is this large, whatever it does: the
    /// states of an `async` block would lie side by side.
    pub(super) struct Serve<C, S>
    where
        S: HttpService<Incoming>,
    {
        settings: Arc<Settings>,
        control: Control,
        // None: the server shuts down.
        draining: Option<Watch>,
        // hyper was told.
        told: bool,
        #[pin]
        stage: Stage<C, S>,
    }
}

pin_project! {
    #[project = Staged]
    enum Stage<C, S>
    where
        S: HttpService<Incoming>,
    {
        // It waits for its client, and has none of hyper's buffers.
        Waits {
            parts: Option<(C, S)>,
            timeout: Option<Sleep>,
            // So many requests were served: behind the first it is HTTP/1.
            served: u32,
        },
        Http1 {
            connection: Option<http1::UpgradeableConnection<C, S>>,
            idle: Idle,
        },
        Http2 {
            #[pin]
            connection: http2::Connection<C, S, LocalExecutor>,
        },
        // There was nothing to serve: the client is told the end.
        Ends {
            io: C,
        },
    }
}

/// Whether a connection asks for nothing.
struct Idle {
    /// Whether its buffers can be given back at all.
    gives_back: bool,
    /// When to look again, if something may come of it.
    look: Option<Sleep>,
    /// How many requests it had begun when that was set.
    seen: u32,
    /// And when its buffers were given back.
    served: u32,
    /// By when the head of the next request is to be there, if they were.
    deadline: Option<Sleep>,
}

impl<C, S, B> Serve<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(settings: Arc<Settings>, io: C, service: S) -> Serve<C, S> {
        let control = io.control();
        let draining = Some(control.draining());
        let timeout = Some(sleep(settings.begin_timeout));
        let stage = Stage::Waits { parts: Some((io, service)), timeout, served: 0 };
        Serve { settings, control, draining, told: false, stage }
    }
}

impl<C, S, B> Stage<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Hands a connection that has begun to hyper. `timeout`: for the head of a request, if some were served.
    fn begin(
        settings: &Settings,
        begun: Begun,
        (served, timeout): (u32, Option<Sleep>),
        (io, service): (C, S),
    ) -> Stage<C, S> {
        let both = (begun, settings.versions) == (Begun::Http2, Versions::Both);
        if both || settings.versions == Versions::Http2 {
            return Stage::Http2 { connection: settings.http2.serve_connection(io, service) };
        }
        let gives_back = io.gives_back();
        let connection = settings.http1.serve_connection(io, service).with_upgrades();
        // hyper's own time begins anew.
        let deadline = timeout.filter(|_| served > 0);
        let idle = Idle { gives_back, look: None, seen: served, served, deadline };
        Stage::Http1 { connection: Some(connection), idle }
    }
}

impl<C, S, B> Future for Serve<C, S>
where
    C: Controlled + Read + Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if !Handle::is_here() {
            let text = "HTTP is served on a poller, which has its tasks and timers";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        loop {
            // First: what has arrived when the server begins to shut down is answered.
            let polled = match this.stage.as_mut().project() {
                Staged::Waits { parts, timeout, served } => {
                    let Some((io, _)) = parts else { return Poll::Ready(Ok(())) };
                    let begun = match *served {
                        0 => poll_begun(io, cx),
                        _ => poll_next(io, cx),
                    };
                    let late = has_come(timeout, cx);
                    let drains = drains(this.draining, cx) && this.control.is_drained();
                    let begun = match begun {
                        Poll::Pending if late || (drains && io.input().is_empty()) => Begun::Gone,
                        begun => ready!(begun),
                    };
                    let Some(parts) = parts.take() else { continue };
                    let stage = match begun {
                        Begun::Gone => Stage::Ends { io: parts.0 },
                        begun => {
                            let served = (*served, timeout.take());
                            Stage::begin(this.settings, begun, served, parts)
                        }
                    };
                    this.stage.set(stage);
                    continue;
                }
                Staged::Ends { io } => {
                    // It may be gone already.
                    let _ = ready!(Pin::new(io).poll_shutdown(cx));
                    return Poll::Ready(Ok(()));
                }
                Staged::Http1 { connection: Some(connection), .. } => Pin::new(connection).poll(cx),
                Staged::Http1 { .. } => return Poll::Ready(Ok(())),
                Staged::Http2 { connection } => connection.poll(cx),
            };
            if let Poll::Ready(served) = polled {
                return Poll::Ready(served.or_else(without_timeout));
            }
            if !*this.told && drains(this.draining, cx) && this.control.is_drained() {
                *this.told = true;
                match this.stage.as_mut().project() {
                    Staged::Http1 { connection: Some(connection), .. } => {
                        Pin::new(connection).graceful_shutdown();
                    }
                    Staged::Http2 { connection } => connection.graceful_shutdown(),
                    _ => {}
                }
                continue;
            }
            let Staged::Http1 { connection, idle } = this.stage.as_mut().project() else {
                return Poll::Pending;
            };
            if ready!(idle.poll(this.control, cx)) == Idleness::Late {
                return Poll::Ready(Ok(()));
            }
            let served = idle.seen;
            let Some(parts) = connection.take().and_then(|connection| connection.into_parts())
            else {
                return Poll::Ready(Ok(()));
            };
            let mut io = parts.io;
            unread(&mut io, parts.read_buf);
            // So long it has been idle already.
            let rest = |timeout: Duration| sleep(timeout.saturating_sub(IDLE));
            let timeout = this.settings.header_read_timeout.map(rest);
            this.stage.set(Stage::Waits { parts: Some((io, parts.service)), timeout, served });
        }
    }
}

/// What has come of an idle connection.
#[derive(PartialEq, Eq)]
enum Idleness {
    /// Its buffers can be given back.
    Long,
    /// The head of the next request took too long.
    Late,
}

impl Idle {
    /// Waits until the connection has asked for nothing for a while, and hyper holds nothing of it but empty buffers. Called when hyper
    /// waits.
    fn poll(&mut self, control: &Control, cx: &mut Context<'_>) -> Poll<Idleness> {
        let requests = control.requests();
        if requests.begun != self.served {
            self.deadline = None;
        }
        if has_come(&mut self.deadline, cx) {
            return Poll::Ready(Idleness::Late);
        }
        let may_go = self.gives_back && requests.are_over && requests.begun != self.served;
        if has_come(&mut self.look, cx) {
            self.look = None;
            if may_go && requests.begun == self.seen {
                return Poll::Ready(Idleness::Long);
            }
        }
        // A look that is set stays, whatever has come meanwhile: a request need not set one.
        if may_go && self.look.is_none() {
            self.seen = requests.begun;
            let mut look = next_look();
            let _ = Pin::new(&mut look).poll(cx);
            self.look = Some(look);
        }
        Poll::Pending
    }
}

/// When to look at a connection that asks for nothing now.
fn next_look() -> Sleep {
    let idle = now() + IDLE;
    let rounded = Handle::with_current(|poller| {
        let clock = poller.clock();
        clock.instant_of(clock.tick_of(idle).next_multiple_of(LOOKS_EVERY))
    });
    sleep_until(rounded.unwrap_or(idle))
}

/// Whether a point in time has come, if there is one.
fn has_come(sleep: &mut Option<Sleep>, cx: &mut Context<'_>) -> bool {
    sleep.as_mut().is_some_and(|sleep| Pin::new(sleep).poll(cx).is_ready())
}

/// Whether the server shuts down.
fn drains(draining: &mut Option<Watch>, cx: &mut Context<'_>) -> bool {
    if draining.as_mut().is_some_and(|draining| Pin::new(draining).poll(cx).is_ready()) {
        *draining = None;
    }
    draining.is_none()
}

/// That the head of a request took too long is how idle connections end.
fn without_timeout(error: ::hyper::Error) -> io::Result<()> {
    if error.is_timeout() { Ok(()) } else { Err(io::Error::other(error)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Pollers, time};

    #[test]
    fn looks_at_connections_that_fall_idle_one_after_the_other_are_due_together() {
        let looks = Pollers::options().block_on(async {
            time::pause().expect("a poller's own time");
            let mut looks = BTreeSet::new();
            for _ in 0..10 * LOOKS_EVERY {
                let look = next_look().deadline();
                let latest = IDLE + Duration::from_millis(LOOKS_EVERY);
                assert!((IDLE..=latest).contains(&(look - now())));
                looks.insert(look);
                time::advance(Duration::from_millis(1)).await.expect("time that stands");
            }
            looks.len()
        });
        let looks = looks.expect("an engine");
        assert!((10..=11).contains(&looks), "{looks}");
    }
}
