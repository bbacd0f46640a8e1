//! A server begins to listen: on each of its pollers, and on none of them if one cannot.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use duopoll_core::{Group, Token};
use futures_channel::oneshot;

use crate::poller::{Acceptor, Handle, Poller, over};

/// Pollers that were told to listen, and have not all said that they do. Dropped, none of them does.
pub(super) struct Beginning {
    asked: Vec<oneshot::Receiver<io::Result<Listens>>>,
    started: Vec<Listens>,
}

/// A poller that listens, until this is dropped.
struct Listens {
    poller: Arc<Handle>,
    token: Option<Token>,
}

impl Beginning {
    /// Tells each poller to listen on one of the sockets. `here`: the first of them, if it runs on this thread and its turns
    /// have not begun.
    pub(super) fn new(
        handles: &[Arc<Handle>],
        sockets: impl Iterator<Item = OwnedFd>,
        group: Group,
        acceptor: &Arc<impl Acceptor + 'static>,
        mut here: Option<&mut Poller>,
    ) -> io::Result<Beginning> {
        let mut beginning = Beginning { asked: Vec::new(), started: Vec::new() };
        // Some were taken over from a process that had more pollers.
        for (handle, socket) in handles.iter().cycle().zip(sockets) {
            let acceptor = acceptor.clone();
            let mut listens = Listens { poller: handle.clone(), token: None };
            let listen = move |poller: &mut Poller| {
                listens.token = Some(poller.listen(socket, group, acceptor)?);
                io::Result::Ok(listens)
            };
            match here.take() {
                Some(poller) => beginning.started.push(listen(poller)?),
                None => beginning.asked.push(handle.ask(listen)),
            }
        }
        Ok(beginning)
    }

    /// Waits until all of them listen. An error if one cannot, or if there is none.
    pub(super) async fn all_listen(&mut self) -> io::Result<()> {
        while let Some(answer) = self.asked.last_mut() {
            let listens = answer.await;
            self.asked.pop();
            match listens {
                Ok(listens) => self.started.push(listens?),
                // It has ended; those that are left will do.
                Err(_) => log::debug!("a poller has ended before it listened"),
            }
        }
        if self.started.is_empty() { Err(over()) } else { Ok(()) }
    }

    /// They go on.
    pub(super) fn keep(mut self) {
        self.started.iter_mut().for_each(|listens| listens.token = None);
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.poller.call(move |poller| poller.stop_listening(token, None));
        }
    }
}
