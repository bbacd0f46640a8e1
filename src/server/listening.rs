//! A server begins to listen: on each of its pollers, and on none of them if one cannot.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use duopoll_core::{Group, Token};
use futures_channel::oneshot;

use crate::poller::{Acceptor, Handle, Poller, over};

/// Pollers that were told to listen, and have not all said that they do. Dropped, none of them does.
pub(super) struct Beginning {
    asked: Vec<(Arc<Handle>, oneshot::Receiver<io::Result<Token>>)>,
    started: Vec<(Arc<Handle>, Token)>,
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
            let listen = move |poller: &mut Poller| poller.listen(socket, group, acceptor);
            if let Some(poller) = here.take() {
                beginning.started.push((handle.clone(), listen(poller)?));
                continue;
            }
            let answer = handle.ask(listen, |poller, listens| {
                if let Ok(token) = listens {
                    poller.stop_listening(token, None);
                }
            });
            beginning.asked.push((handle.clone(), answer));
        }
        Ok(beginning)
    }

    /// Waits until all of them listen. An error if one cannot, or if there is none.
    pub(super) async fn all_listen(&mut self) -> io::Result<()> {
        while let Some((handle, answer)) = self.asked.last_mut() {
            let listens = answer.await;
            let handle = handle.clone();
            self.asked.pop();
            match listens {
                Ok(token) => self.started.push((handle, token?)),
                // It has ended; those that are left will do.
                Err(_) => log::debug!("a poller has ended before it listened"),
            }
        }
        if self.started.is_empty() { Err(over()) } else { Ok(()) }
    }

    /// They go on.
    pub(super) fn keep(mut self) {
        self.started.clear();
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        for (handle, mut answer) in self.asked.drain(..) {
            answer.close();
            if let Ok(Some(Ok(token))) = answer.try_recv() {
                self.started.push((handle, token));
            }
        }
        for (handle, token) in self.started.drain(..) {
            handle.call(move |poller| poller.stop_listening(token, None));
        }
    }
}
