//! A listener that answers nobody.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// A listener whose backlog is full: what is sent to it is not answered.
#[derive(Debug)]
pub struct Full {
    pub address: SocketAddr,
    _sockets: Vec<Socket>,
}

impl Full {
    /// Listens at an address.
    pub fn new(local: &str) -> Full {
        let local = SockAddr::from(local.parse::<SocketAddr>().expect("an address"));
        let domain = Domain::from(i32::from(local.family()));
        let listener = Socket::new(domain, Type::STREAM, None).expect("a socket");
        listener.bind(&local).expect("bound");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("bound");
        let mut sockets = vec![listener];
        // Whoever is not established within a moment never is.
        loop {
            assert!(sockets.len() < 100, "the backlog is never full");
            let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
            let connected = socket.connect_timeout(&address, Duration::from_millis(200));
            sockets.push(socket);
            if connected.is_err() {
                break;
            }
        }
        Full { address: address.as_socket().expect("TCP"), _sockets: sockets }
    }
}
