//! Every web server of the build gives the right answers, wrong ones are noticed, and what the load generators print is
//! understood. What they printed was captured from wrk 4.1.0 and nghttp2 1.52.0.

#![cfg(feature = "http")]

use duopoll_benches::process;
use duopoll_benches::web::client::Client;
use duopoll_benches::web::generator::{Moment, Moments, Said, parse_h2load, parse_wrk};
use duopoll_benches::web::measure::Place;
use duopoll_benches::web::shape::{Ask, HELLO, Shape};
use duopoll_benches::web::{self, Server, Start, certificate};

/// Servers that need nothing but this package's program.
fn servers() -> impl Iterator<Item = &'static Server> {
    web::all().iter().filter(|server| matches!(server.start, Start::Function(_)))
}

/// With a certificate in a folder that is named after the test.
fn place(test: &str) -> Place {
    let folder = std::env::temp_dir().join(format!("duopoll-web-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    certificate::make(&folder).unwrap();
    let program = env!("CARGO_BIN_EXE_compare").into();
    Place { program, server_core: 0, client_core: 1, folder, go: None, callgrind: None }
}

fn answers_are_right(place: &Place, shape: &Shape) {
    for server in servers().filter(|server| (server.serves)(shape)) {
        let (_process, options) = place.start(server, shape).unwrap();
        let client = Client::new(options.listen, options.tls.as_deref()).unwrap();
        let right = shape.ask.answer();
        let mut stream = client.connect().unwrap();
        // Again on the same connection.
        for _ in 0..3 {
            let bytes = stream.ask(shape.ask, &right).unwrap_or_else(|error| {
                panic!("{}, {shape:?}: {error}", server.name);
            });
            assert!(bytes > right.len());
        }
        stream.close().unwrap();
    }
}

const HTTP: [Ask; 5] = [Ask::Hello, Ask::Json, Ask::Bytes, Ask::Pieces, Ask::Upload];

#[test]
fn http_is_answered() {
    let place = place("http");
    for ask in HTTP {
        answers_are_right(&place, &Shape::http1(ask, 1));
        answers_are_right(&place, &Shape::http1(ask, 1).on_two_threads());
    }
    std::fs::remove_dir_all(place.folder).unwrap();
}

#[test]
fn http_is_answered_over_tls() {
    let place = place("tls");
    for ask in HTTP {
        answers_are_right(&place, &Shape::http1(ask, 1).over_tls());
    }
    std::fs::remove_dir_all(place.folder).unwrap();
}

#[test]
fn a_wrong_answer_is_an_error() {
    let place = place("wrong");
    let server = web::find("tokio").unwrap();
    let (_process, options) = place.start(server, &Shape::http1(Ask::Json, 1)).unwrap();
    let ask = |ask, right: &[u8]| {
        Client::new(options.listen, None).unwrap().connect().unwrap().ask(ask, right)
    };
    // A path that this service does not have, another text, another length.
    assert!(ask(Ask::Hello, HELLO.as_bytes()).is_err());
    assert!(ask(Ask::Json, &Ask::Json.answer().to_ascii_uppercase()).is_err());
    assert!(ask(Ask::Json, b"{}").is_err());
    assert!(ask(Ask::Json, &Ask::Json.answer()).is_ok());
    std::fs::remove_dir_all(place.folder).unwrap();
}

#[test]
fn http2_and_grpc_are_answered() {
    if !process::have("h2load") {
        eprintln!("h2load is not installed");
        return;
    }
    let place = place("http2");
    for ask in [Ask::Hello, Ask::Pieces, Ask::Upload, Ask::Unary, Ask::Messages] {
        for shape in [Shape::http2(ask, 2, 3), Shape::http2(ask, 2, 3).over_tls()] {
            for server in servers().filter(|server| (server.serves)(&shape)) {
                let (_process, options) = place.start(server, &shape).unwrap();
                place.run(&shape, &options).h2load_few().unwrap_or_else(|error| {
                    panic!("{}, {shape:?}: {error}", server.name);
                });
                // The service has no such path.
                let other = if ask == Ask::Unary { Ask::Hello } else { Ask::Unary };
                if ask.app() != other.app() {
                    let shape = Shape { ask: other, ..shape.clone() };
                    assert!(place.run(&shape, &options).h2load_few().is_err(), "{}", server.name);
                }
            }
        }
    }
    std::fs::remove_dir_all(place.folder).unwrap();
}

#[test]
fn what_wrk_prints_is_understood() {
    let said = parse_wrk(include_str!("captured/wrk.txt")).unwrap();
    let right = Said {
        requests: 23_728,
        seconds: 1.102967,
        bytes: 3_630_384,
        errors: 0,
        p50_us: 127.0,
        p99_us: 9474.0,
        p999_us: 13374.0,
        max_us: 14861.0,
    };
    assert_eq!(said, right);
    let said = parse_wrk(include_str!("captured/wrk-404.txt")).unwrap();
    assert_eq!((said.requests, said.errors), (13_500, 13_500));
    assert_eq!(parse_wrk("unable to connect to 127.0.0.1:21001 Connection refused\n"), None);
}

#[test]
fn what_h2load_prints_is_understood() {
    let said = parse_h2load(include_str!("captured/h2load.txt")).unwrap();
    assert_eq!((said.requests, said.errors, said.bytes), (15_992, 0, 125_112));
    // The warm-up is no part of the time, though it says so.
    assert_eq!(said.seconds, 0.5);
    assert_eq!(said.max_us, 5440.0);
    let said = parse_h2load(include_str!("captured/h2load-few.txt")).unwrap();
    assert_eq!((said.requests, said.errors, said.bytes), (32, 0, 192));
    let said = parse_h2load(include_str!("captured/h2load-404.txt")).unwrap();
    assert_eq!(said.requests, 0);
    assert!(said.errors >= 32);
    let said = parse_h2load(include_str!("captured/h2load-refused.txt")).unwrap();
    assert_eq!(said.requests, 0);
    assert_eq!(parse_h2load(""), None);
}

#[test]
fn the_window_begins_with_the_last_thread_and_ends_with_the_first() {
    let mut moments = Moments::new(2);
    let text = include_str!("captured/h2load.txt");
    let found: Vec<(usize, Moment)> = text
        .lines()
        .enumerate()
        .filter_map(|(number, line)| Some((number, moments.look(line)?)))
        .collect();
    assert_eq!(found, [(11, Moment::Begin), (12, Moment::End)]);
}
