//! The book, and the README of the repository: their examples are doc tests here, and the names of items in them are links that rustdoc
//! checks. There is no code beside.
//!
//! It is written to be read as it lies in the repository; [its beginning](contents) has the list of its chapters.

macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {$(
        pub mod $name {
            #![doc = include_str!($file)]

            // What the links name.
            #[allow(unused_imports)]
            use duopoll::*;
        }
    )*};
}

chapters! {
    readme: "../../README.md",
    contents: "README.md",
    what_and_why: "01-what-and-why.md",
    first_server: "02-first-server.md",
    messages: "03-messages.md",
    clients: "04-clients.md",
    tasks: "05-tasks.md",
    http: "06-http.md",
    tls: "07-tls.md",
    datagrams: "08-datagrams.md",
    proxies: "09-proxies.md",
    ends: "10-ends.md",
    engines: "11-engines.md",
    tests: "12-tests.md",
    operating: "13-operating.md",
    from_tokio: "14-from-tokio.md",
    from_netpoll: "15-from-netpoll.md",
    features_and_examples: "16-features-and-examples.md",
}
