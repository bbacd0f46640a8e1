//! Active checks: each upstream is connected to, time and again.

use std::io;
use std::sync::Arc;

use duopoll::time::{self, MissedTicks};
use duopoll::{Dialer, Pollers, task};

use crate::config::Health;
use crate::header;
use crate::upstream::{Upstream, Upstreams, dialer, is_own_shortage};

/// Begins to check all of them, on a poller, for as long as that goes on.
pub(crate) fn begin(upstreams: &Arc<Upstreams>, health: Health, pollers: &Pollers) {
    if health.interval.0.is_zero() {
        return;
    }
    let upstreams = upstreams.clone();
    drop(pollers.spawn(move || async move {
        for index in 0..upstreams.iter().count() {
            let upstreams = upstreams.clone();
            drop(task::spawn_local(async move {
                if let Some(upstream) = upstreams.iter().nth(index) {
                    check(upstream, health).await;
                }
            }));
        }
    }));
}

/// Connects, and says that it is nobody, if it is to say who it is.
async fn connects(upstream: &Upstream, dialer: &Dialer) -> io::Result<()> {
    let mut connection = upstream.dial(dialer).await?;
    if let Some(version) = upstream.send_proxy {
        connection.write(&header::of(version, None)?)?;
        connection.flush().await?;
    }
    Ok(())
}

async fn check(upstream: &Upstream, health: Health) {
    let dialer = dialer(health.timeout.0);
    // In a row, that say otherwise than what holds.
    let mut otherwise = 0;
    // One that was held up does not make up for the checks that it has missed.
    let mut ticks = time::interval(health.interval.0).missed_ticks(MissedTicks::Delay);
    loop {
        ticks.tick().await;
        let checked = connects(upstream, &dialer).await;
        if checked.as_ref().is_err_and(is_own_shortage) {
            continue;
        }
        if checked.is_ok() == upstream.is_up() {
            otherwise = 0;
            continue;
        }
        otherwise += 1;
        match checked {
            Ok(_) if otherwise >= health.rise => {
                tracing::info!(upstream = %upstream.name, "up");
                upstream.set_up(true);
            }
            Err(error) if otherwise >= health.fall => {
                tracing::warn!(upstream = %upstream.name, %error, "down");
                upstream.set_up(false);
            }
            _ => continue,
        }
        otherwise = 0;
    }
}
