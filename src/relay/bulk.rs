//! Bulk: both sockets are lent by the poller, and the kernel moves what comes from one to the other.
//!
//! It begins when large pieces come and nothing waits to be sent, and ends when they are small, nothing moves, or one side has
//! ended or broken: then what is on its way goes back to the connections, which do all else.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use duopoll_core::{Direction, Readiness, Token, syscalls};
use rustix::event::PollFlags;

use super::pipe::{Pipe, sigpipe_ends_the_process};
use super::side::Side;
use crate::LinkBuffer;
use crate::connection::Connection;
use crate::poller::{Handle, Poller};
use crate::time::{Sleep, now, sleep};

/// A piece that is so large is cheaper to move than to copy.
const LARGE_BYTES: usize = 16 << 10;
/// So many more large pieces than small ones make it bulk, and as many small ones undo it.
const LARGE_MIN: u8 = 8;
/// Moved in one direction before others have their turn.
const BUDGET_BYTES: usize = 1 << 20;
/// If nothing has moved for so long, the poller may as well watch the sockets itself. Its timeouts begin then.
const STALL: Duration = Duration::from_millis(100);
/// Pieces of what arrived before that are sent by one call.
const PIECES_MAX: usize = 16;

/// Of what size the pieces are that come.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Large ones without as many small ones.
    large: u8,
    /// From where the last one came, if that was large: a small one behind it is its rest.
    behind: Option<Side>,
    /// The kernel may move them.
    splices: bool,
}

impl Pieces {
    pub(super) fn new(splices: bool) -> Pieces {
        Pieces { large: 0, behind: None, splices }
    }

    pub(super) fn saw(&mut self, from: Side, bytes: usize) {
        if bytes >= LARGE_BYTES {
            self.large = (self.large + 1).min(2 * LARGE_MIN);
            self.behind = Some(from);
        } else if self.behind.take() != Some(from) {
            self.large = self.large.saturating_sub(1);
        }
    }

    /// From now on all is received and sent.
    pub(super) fn are_copied(&mut self) {
        self.splices = false;
    }

    /// Whether the kernel is to move what comes.
    pub(super) fn are_bulk(&self) -> bool {
        self.splices && self.large >= LARGE_MIN
    }
}

/// As they are numbered here.
const SIDES: [Side; 2] = [Side::First, Side::Second];

/// Why bulk is over.
enum Over {
    /// The rest is for the connections.
    Leave,
    /// It cannot be done here.
    Never,
    Broken(Broken),
}

/// Which of the two has broken.
pub(super) enum Broken {
    /// While it was received from: all that came before has been handed over.
    Source(Side, io::Error),
    /// While it was sent to: more may come from it.
    Target(Side, io::Error),
}

/// Moves what comes, until the rest is for the connections to do. `bytes` counts what each
/// has received. Nothing may be staged or unsent when it begins. When it ends, or is dropped, what was on its way is staged.
pub(super) async fn relay(
    sides: [&mut Connection; 2],
    bytes: [&mut u64; 2],
    pieces: &mut Pieces,
) -> Result<(), Broken> {
    if sigpipe_ends_the_process() {
        // There is no MSG_NOSIGNAL for splice(2).
        pieces.are_copied();
        return Ok(());
    }
    let [first, second] = sides;
    for side in [&mut *first, &mut *second] {
        side.reader_mut().end_wait();
        side.writer_mut().end_wait();
    }
    let sides = [first, second];
    let Some(loans) = Loan::both(&sides).await else {
        pieces.are_copied();
        return Ok(());
    };
    let mut bulk = Bulk { sides, ways: [Way::default(), Way::default()], loans, bytes };
    let mut stall = pin!(sleep(STALL));
    let over = poll_fn(|cx| match bulk.poll(cx, pieces) {
        Poll::Pending => bulk.poll_stall(cx, stall.as_mut()),
        over => over,
    });
    let over = over.await;
    let broken = bulk.broken();
    drop(bulk);
    pieces.large = 0;
    match over {
        Over::Leave => {}
        Over::Never => pieces.are_copied(),
        Over::Broken(broken) => return Err(broken),
    }
    // The kernel tells an error once, and would say that it was the end.
    broken.map_or(Ok(()), Err)
}

/// The socket of a connection, which its poller has lent.
struct Loan {
    poller: Arc<Handle>,
    token: Token,
    readiness: Arc<Readiness>,
}

impl Loan {
    /// Those of both, if this is the poller of both.
    async fn both(sides: &[&mut Connection; 2]) -> Option<[Loan; 2]> {
        let poller = Handle::current()?;
        let tokens = [sides[0].control().local_token()?, sides[1].control().local_token()?];
        let one = Loan::one(&poller, tokens[0]).await?;
        let other = Loan::one(&poller, tokens[1]).await?;
        Some([one, other])
    }

    async fn one(poller: &Arc<Handle>, token: Token) -> Option<Loan> {
        let handle = poller.clone();
        let lend = move |poller: &mut Poller| {
            Some(Loan { readiness: poller.lend(token)?, poller: handle, token })
        };
        poller.ask(lend).await.ok()?
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let token = self.token;
        self.poller.call(move |poller| poller.give_back_lent(token));
    }
}

/// Bytes that were received from one side and not sent to the other.
#[derive(Default)]
struct Way {
    /// What the poller had received before was taken.
    begun: bool,
    /// That.
    rest: LinkBuffer,
    /// There is one only while something is in it.
    pipe: Option<Pipe>,
    /// How the source has ended, behind these.
    ended: Option<io::Result<()>>,
    /// How often something was taken or given, and how often by the last look.
    moved: u64,
    seen: u64,
}

impl Way {
    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.pipe.is_none()
    }

    /// Takes what the source has, when nothing is left; 0 at its end.
    fn take(&mut self, source: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let mut pipe = Pipe::take()?;
        let taken = pipe.fill(source, most);
        if pipe.is_empty() {
            pipe.put();
        } else {
            self.moved += 1;
            self.pipe = Some(pipe);
        }
        taken
    }

    /// Gives the target what it takes.
    fn give(&mut self, target: BorrowedFd<'_>) -> io::Result<usize> {
        if !self.rest.is_empty() {
            let pieces: Vec<_> = self.rest.chunks().take(PIECES_MAX).map(IoSlice::new).collect();
            let given = syscalls::send(target, &pieces)?;
            self.rest.skip(given)?;
            self.moved += 1;
            return Ok(given);
        }
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        let given = pipe.drain(target)?;
        self.moved += 1;
        if pipe.is_empty() {
            self.pipe.take().into_iter().for_each(Pipe::put);
        }
        Ok(given)
    }
}

struct Bulk<'a> {
    sides: [&'a mut Connection; 2],
    /// From each side to the other.
    ways: [Way; 2],
    loans: [Loan; 2],
    bytes: [&'a mut u64; 2],
}

impl Bulk<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<Over> {
        let first = self.poll_way(0, cx, pieces);
        if first.is_ready() { first } else { self.poll_way(1, cx, pieces) }
    }

    fn poll_way(&mut self, from: usize, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<Over> {
        let to = 1 - from;
        let mut budget = BUDGET_BYTES;
        loop {
            let way = &mut self.ways[from];
            if !way.is_empty() {
                let target = self.sides[to].own_socket();
                match ready!(
                    self.loans[to].readiness.poll_with(cx, Direction::Write, || way.give(target))
                ) {
                    None => return Poll::Ready(Over::Leave),
                    Some(Ok(given)) => {
                        self.sides[to].control().count_moved(0, given as u64);
                        continue;
                    }
                    Some(Err(error)) => {
                        return Poll::Ready(Over::of(error, |error| {
                            Broken::Target(SIDES[to], error)
                        }));
                    }
                }
            }
            match way.ended.take() {
                None => {}
                Some(Ok(())) => return Poll::Ready(Over::Leave),
                Some(Err(error)) => {
                    return Poll::Ready(Over::of(error, |error| {
                        Broken::Source(SIDES[from], error)
                    }));
                }
            }
            if !way.begun {
                if ready!(self.loans[from].readiness.poll(cx, Direction::Read)).is_none() {
                    return Poll::Ready(Over::Leave);
                }
                way.begun = true;
                let side = &mut self.sides[from];
                side.reader_mut().take_arrived();
                *self.bytes[from] += side.input_mut().len() as u64;
                way.rest.append(side.input_mut());
                way.rest.flush();
                if !side.is_active() {
                    return Poll::Ready(Over::Leave);
                }
                continue;
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.sides[from].control().is_paused() {
                return Poll::Ready(Over::Leave);
            }
            let source = self.sides[from].own_socket();
            let most = self.sides[from].control().share_bytes().max(LARGE_BYTES);
            match ready!(
                self.loans[from]
                    .readiness
                    .poll_with(cx, Direction::Read, || way.take(source, most))
            ) {
                None => return Poll::Ready(Over::Leave),
                Some(Ok(0)) => way.ended = Some(Ok(())),
                Some(Ok(taken)) => {
                    *self.bytes[from] += taken as u64;
                    self.sides[from].control().count_moved(taken as u64, 0);
                    budget = budget.saturating_sub(taken);
                    pieces.saw(SIDES[from], taken);
                    if pieces.large == 0 {
                        return Poll::Ready(Over::Leave);
                    }
                }
                Some(Err(error)) => way.ended = Some(Err(error)),
            }
        }
    }

    /// An error of a source of which nobody was told, since something was on its way.
    fn broken(&mut self) -> Option<Broken> {
        let broken = |(way, side): (&mut Way, Side)| match way.ended.take()? {
            Ok(()) => None,
            Err(error) => Some(Broken::Source(side, error)),
        };
        self.ways.iter_mut().zip(SIDES).find_map(broken)
    }

    /// Whether nothing has moved for a while, or one direction stands still though there is something to move: the target takes nothing, or
    /// the kernel does not splice what comes next, as behind an urgent byte.
    fn poll_stall(&mut self, cx: &mut Context<'_>, mut stall: Pin<&mut Sleep>) -> Poll<Over> {
        while stall.as_mut().poll(cx).is_ready() {
            let mut idle = true;
            for (way, side) in self.ways.iter_mut().zip(&self.sides) {
                let stands = std::mem::replace(&mut way.seen, way.moved) == way.moved;
                // Not by how many bytes there are: of those behind an urgent one the kernel does not tell.
                let has_more = || syscalls::ready(side.own_socket()).contains(PollFlags::IN);
                if stands && (!way.is_empty() || has_more()) {
                    return Poll::Ready(Over::Leave);
                }
                idle &= stands;
            }
            if idle {
                return Poll::Ready(Over::Leave);
            }
            stall.reset(now() + STALL);
        }
        Poll::Pending
    }
}

impl Drop for Bulk<'_> {
    fn drop(&mut self) {
        for (from, way) in self.ways.iter_mut().enumerate() {
            let target = &mut self.sides[1 - from];
            let unloaded = way.pipe.take().map_or(Ok(()), |mut pipe| pipe.unload(&mut way.rest));
            target.append(&mut way.rest);
            // If it is not open any more, it is known why.
            let _ = target.writer_mut().submit();
            if unloaded.is_err() {
                // Not a FIN: that would look like the end of a whole message.
                target.abort();
            }
        }
    }
}

impl Over {
    /// What an error of a side makes of it.
    fn of(error: io::Error, broken: impl FnOnce(io::Error) -> Broken) -> Over {
        // No socket says that it was not understood: it is a kernel or a sandbox that cannot do it.
        let refused =
            matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM));
        if refused || syscalls::is_shortage(&error) {
            Over::Never
        } else {
            Over::Broken(broken(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rounds of these pieces make it bulk, of a hundred.
    fn rounds(round: &[(Side, usize)]) -> Option<usize> {
        let mut pieces = Pieces::new(true);
        (1..=100).find(|_| {
            round.iter().for_each(|(from, bytes)| pieces.saw(*from, *bytes));
            pieces.are_bulk()
        })
    }

    #[test]
    fn large_pieces_are_bulk() {
        use Side::{First, Second};
        const MESSAGE: usize = 64 << 10;
        assert_eq!(rounds(&[(First, MESSAGE)]), Some(8));
        // As loopback has them arrive where a receiver is fast.
        assert_eq!(rounds(&[(First, 65_483), (First, MESSAGE - 65_483)]), Some(8));
        // As many small messages, of the same peer's or of the other's.
        assert_eq!(rounds(&[(First, MESSAGE), (First, 53), (First, 53)]), None);
        assert_eq!(rounds(&[(First, MESSAGE), (Second, 53)]), None);
        assert_eq!(rounds(&[(First, LARGE_BYTES - 1)]), None);
    }

    #[test]
    fn small_pieces_undo_it() {
        let mut pieces = Pieces::new(true);
        (0..100).for_each(|_| pieces.saw(Side::First, LARGE_BYTES));
        let small = (1..100).find(|_| {
            pieces.saw(Side::First, 53);
            pieces.large == 0
        });
        assert_eq!(small, Some(17));
    }
}
