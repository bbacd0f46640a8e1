//! The resolver between clients and upstreams that behave, or do not.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use support::{
    Client, ENGINES, PATIENCE, RIGHT, Resolver, Upstream, framed, query, query_of, read_framed,
    with_edns,
};

/// On each engine, with an upstream of its own.
fn on_each(flags: &str, test: impl Fn(Resolver, Upstream)) {
    for engine in ENGINES {
        let upstream = Upstream::start();
        let line = format!(
            "--engine {engine} --listen 127.0.0.1:0 --upstream {} {flags}",
            upstream.address
        );
        test(Resolver::start(&line), upstream);
    }
}

#[test]
fn what_was_asked_before_is_told_again_with_the_time_that_is_left() {
    on_each("", |mut resolver, upstream| {
        let client = resolver.client();
        let first = client.ask(&query(1, "www.test"));
        assert_eq!((first.rcode(), first.address(), first.ttl()), (Rcode::NOERROR, RIGHT, 300));
        assert!(first.0.header().ra() && first.0.header().rd() && !first.0.header().aa());
        thread::sleep(Duration::from_millis(1100));
        let again = client.ask(&query(2, "www.test"));
        assert_eq!(again.address(), RIGHT);
        assert!((290..300).contains(&again.ttl()), "{}", again.ttl());
        assert_eq!(upstream.asked("www.test").len(), 1);
        assert_eq!((resolver.figure("hits"), resolver.figure("misses")), (1, 1));
    });
}

#[test]
fn what_is_over_is_asked_anew() {
    on_each("", |resolver, upstream| {
        let client = resolver.client();
        assert_eq!(client.ask(&query(1, "two.test")).ttl(), 2);
        thread::sleep(Duration::from_millis(2100));
        assert_eq!(client.ask(&query(2, "two.test")).ttl(), 2);
        assert_eq!(upstream.asked("two.test").len(), 2);
        for id in 0..3 {
            assert_eq!(client.ask(&query(id, "zero.test")).ttl(), 0);
        }
        assert_eq!(upstream.asked("zero.test").len(), 3);
    });
}

#[test]
fn what_is_not_there_is_kept_for_as_long_as_its_zone_says() {
    on_each("", |resolver, upstream| {
        let client = resolver.client();
        for (name, rcode) in [("nx.test", Rcode::NXDOMAIN), ("nodata.test", Rcode::NOERROR)] {
            let first = client.ask(&query(1, name));
            assert_eq!((first.rcode(), first.negative_ttl()), (rcode, 30));
            let again = client.ask(&query(2, name));
            assert_eq!(again.rcode(), rcode);
            assert!((20..=30).contains(&again.negative_ttl()));
            assert_eq!(upstream.asked(name).len(), 1);
        }
        for id in 0..2 {
            assert_eq!(client.ask(&query(id, "nosoa.test")).rcode(), Rcode::NXDOMAIN);
        }
        assert_eq!(upstream.asked("nosoa.test").len(), 2);
    });
}

#[test]
fn letters_come_back_as_they_were_written() {
    on_each("", |resolver, upstream| {
        let client = resolver.client();
        for name in ["wWw.TesT", "WWW.test", "www.TEST"] {
            let asked = query(7, name);
            let reply = client.ask(&asked);
            assert_eq!(reply.0.as_slice()[12..asked.len()], asked[12..]);
            let record = reply.0.answer().expect("in order").next().expect("one");
            assert_eq!(record.expect("in order").owner().to_string(), name);
        }
        // One question, in the letters of the first.
        assert_eq!(upstream.asked("wWw.TesT").len(), 1);
        assert!(upstream.asked("www.TEST").is_empty());
    });
}

#[test]
fn what_does_not_fit_is_truncated() {
    on_each("", |resolver, _| {
        let client = resolver.client();
        // 60 addresses are about a thousand bytes.
        let bare = client.ask(&query(1, "sixty.test"));
        assert!(bare.is_truncated() && bare.addresses().is_empty() && bare.0.opt().is_none());
        assert!(bare.0.as_slice().len() <= 512);
        for (bytes, fits) in [(0, false), (512, false), (900, false), (1232, true), (65_535, true)]
        {
            let reply = client.ask(&with_edns(query(2, "sixty.test"), bytes, 0, false));
            assert_eq!(reply.is_truncated(), !fits, "{bytes}");
            assert_eq!(reply.addresses().len(), if fits { 60 } else { 0 });
            assert!(reply.0.as_slice().len() <= usize::from(bytes.max(512)));
            assert!(reply.0.opt().is_some());
        }
    });
}

#[test]
fn the_dnssec_bit_is_passed_on_and_tells_answers_apart() {
    on_each("", |resolver, upstream| {
        let client = resolver.client();
        for dnssec_ok in [true, false, true] {
            let reply = client.ask(&with_edns(query(1, "www.test"), 1232, 0, dnssec_ok));
            assert_eq!(reply.0.opt().expect("EDNS").dnssec_ok(), dnssec_ok);
        }
        let asked = upstream.asked("www.test");
        assert_eq!(asked.iter().map(|asked| asked.dnssec_ok).collect::<Vec<_>>(), [true, false]);
    });
}

#[test]
fn other_versions_of_edns_are_told_ours() {
    on_each("", |resolver, _| {
        let reply = resolver.client().ask(&with_edns(query(1, "www.test"), 1232, 1, false));
        let opt = reply.0.opt().expect("EDNS");
        assert_eq!((opt.rcode(reply.0.header()).to_int(), opt.version()), (16, 0));
    });
}

#[test]
fn truncated_answers_are_fetched_over_tcp() {
    on_each("", |resolver, upstream| {
        let reply = resolver.client().ask(&with_edns(query(1, "big.test"), 4096, 0, false));
        assert_eq!(reply.addresses().len(), 200);
        let asked = upstream.asked("big.test");
        assert_eq!(asked.iter().map(|asked| asked.tcp).collect::<Vec<_>>(), [false, true]);
        // To a client that takes little, and comes over TCP then.
        assert!(resolver.client().ask(&query(2, "big.test")).is_truncated());
        let mut stream = resolver.connect();
        stream.write_all(&framed(&query(3, "big.test"))).expect("sent");
        assert_eq!(read_framed(&mut stream).addresses().len(), 200);
    });
}

#[test]
fn only_the_answer_to_what_was_asked_counts() {
    on_each("--timeout 20", |mut resolver, upstream| {
        let client = resolver.client();
        let names = ["wrongid", "wrongquestion", "wrongtype", "wrongsender", "query", "garbage"];
        for name in names.map(|name| format!("{name}.test")) {
            let reply = client.ask(&query(1, &name));
            assert_eq!((reply.rcode(), reply.address()), (Rcode::NOERROR, RIGHT), "{name}");
            assert_eq!(upstream.asked(&name).len(), 1, "{name}");
        }
        // What another sender has sent the kernel keeps out.
        assert_eq!(resolver.figure("upstream_strays"), 4 + 5);
        assert_eq!(resolver.figure("upstream_failures"), 0);
    });
}

#[test]
fn numbers_and_ports_are_drawn() {
    on_each("", |resolver, upstream| {
        let client = resolver.client();
        let (mut ids, mut ports) = (Vec::new(), Vec::new());
        for number in 0..20 {
            client.ask(&query(1, &format!("drawn{number}.test")));
            let asked = upstream.asked(&format!("drawn{number}.test"));
            ids.push(asked[0].id);
            ports.push(asked[0].from.port());
        }
        for drawn in [&mut ids, &mut ports] {
            let steps = drawn.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
            assert!(steps.filter(|step| *step <= 2).count() < 5, "they count: {drawn:?}");
            drawn.sort_unstable();
            drawn.dedup();
            assert!(drawn.len() >= 18, "the same again and again: {drawn:?}");
        }
    });
}

#[test]
fn who_does_not_answer_is_passed_over() {
    for engine in ENGINES {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let refuses = UdpSocket::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound");
        let upstream = Upstream::start();
        let (first, last) = (silent.local_addr().expect("bound"), upstream.address);
        let mut resolver = Resolver::start(&format!(
            "--engine {engine} --listen 127.0.0.1:0 --timeout 0.2 --upstream {first} \
             --upstream {refuses} --upstream {last}"
        ));
        let client = resolver.client();
        assert_eq!(client.ask(&query(1, "one.test")).address(), RIGHT);
        assert_eq!(resolver.figure("upstream_failures"), 2);
        // Who has answered is asked first from then on.
        assert_eq!(client.ask(&query(2, "other.test")).address(), RIGHT);
        assert_eq!(resolver.figure("upstream_failures"), 2);
    }
}

#[test]
fn without_an_answer_there_is_an_error_and_it_is_not_kept() {
    on_each("--timeout 0.1", |mut resolver, upstream| {
        let client = resolver.client();
        for (name, asked) in [("silent.test", 2), ("broken.test", 2), ("servfail.test", 2)] {
            for times in 1..=2 {
                assert_eq!(client.ask(&query(1, name)).rcode(), Rcode::SERVFAIL, "{name}");
                assert_eq!(upstream.asked(name).len(), asked * times, "{name}");
            }
        }
        assert_eq!(resolver.figure("upstream_failures"), 12);
    });
}

#[test]
fn the_same_question_is_asked_once() {
    for engine in ENGINES {
        let upstream = Upstream::start();
        let mut resolver = Resolver::start(&format!(
            "--engine {engine} --pollers 2 --listen 127.0.0.1:0 --timeout 20 --upstream {}",
            upstream.address
        ));
        let clients: Vec<_> = (0..50).map(|_| resolver.client()).collect();
        let mut stream = resolver.connect();
        for (id, client) in clients.iter().enumerate() {
            client.send(&query(id as u16, "held.test"));
        }
        stream.write_all(&framed(&query(999, "HELD.test"))).expect("sent");
        resolver.comes_to("misses", 51);
        upstream.release();
        for (id, client) in clients.iter().enumerate() {
            let reply = client.receive();
            assert_eq!((reply.id(), reply.address()), (id as u16, RIGHT));
        }
        assert_eq!(read_framed(&mut stream).id(), 999);
        assert_eq!(upstream.asked("held.test").len() + upstream.asked("HELD.test").len(), 1);
        assert_eq!(resolver.figure("joined"), 50);
    }
}

#[test]
fn queries_over_tcp_are_answered_as_answers_come() {
    on_each("--timeout 20", |resolver, upstream| {
        let mut stream = resolver.connect();
        let mut sent = framed(&query(0, "held.test"));
        for id in 1..100 {
            sent.extend(framed(&query(id, &format!("name{}.test", id % 10))));
        }
        // In pieces that have nothing to do with the messages.
        for piece in sent.chunks(37) {
            stream.write_all(piece).expect("sent");
        }
        // One that is not answered holds up none.
        let mut ids: Vec<_> = (1..100).map(|_| read_framed(&mut stream).id()).collect();
        upstream.release();
        ids.push(read_framed(&mut stream).id());
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..100));
        stream.shutdown(std::net::Shutdown::Write).expect("a socket");
        assert_eq!(stream.read(&mut [0; 1]).expect("the end"), 0);
    });
}

#[test]
fn connections_that_say_nothing_are_ended() {
    on_each("--idle-timeout 0.2", |resolver, _| {
        for said in [&b""[..], b"\0", b"\0\x20ab"] {
            let mut stream = resolver.connect();
            stream.write_all(said).expect("sent");
            assert!(!matches!(stream.read(&mut [0; 1]), Ok(1)), "{said:?}");
        }
        // What is no query ends it, too.
        let mut stream = resolver.connect();
        stream.write_all(&framed(b"short")).expect("sent");
        assert!(!matches!(stream.read(&mut [0; 1]), Ok(1)));
    });
}

#[test]
fn what_is_no_query_is_told_so_or_nothing() {
    on_each("", |mut resolver, upstream| {
        let client = resolver.client();
        let www = query(1, "www.test");
        // Less than a header, and answers.
        for nothing in [&b""[..], b"\0", &www[..11]] {
            client.send(nothing);
        }
        let mut answer = www.clone();
        answer[2] |= 0x80;
        client.send(&answer);
        assert!(client.is_silent());
        // A header, and not all of what it announces; two questions; a name that points to itself; two OPTs.
        let mut two = [&www[..], &www[12..]].concat();
        two[5] = 2;
        let mut pointing = query(1, "x");
        pointing.splice(12..15, [0xc0, 12]);
        let twice = with_edns(with_edns(www.clone(), 1232, 0, false), 1232, 0, false);
        let mut none = www[..12].to_vec();
        none[5] = 0;
        // Its name is in the header, and its class says IN.
        let header = [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 10, 0, 1, 0, 1u8];
        // A chain of pointers through all of it, and records whose names are at its end.
        let mut chain = www.clone();
        chain.extend((0..500u16).flat_map(|at| (0xc000 + 12 + 2 * at).to_be_bytes()));
        for _ in 0..100 {
            chain.extend([0xc0 | 3, 0xf0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        chain[7] = 100;
        for malformed in [
            &www[..12],
            &www[..20],
            &www[..www.len() - 1],
            &two,
            &pointing,
            &twice,
            &none,
            &header,
            &chain,
        ] {
            let reply = client.ask(malformed);
            assert_eq!(reply.rcode(), Rcode::FORMERR, "{malformed:?}");
            assert_eq!(reply.0.as_slice().len(), 12);
        }
        for opcode in [1, 2, 4, 5, 15] {
            let mut other = www.clone();
            other[2] = opcode << 3;
            assert_eq!(client.ask(&other).rcode(), Rcode::NOTIMP);
        }
        assert_eq!(client.ask(&query_of(1, "www.test", 252)).rcode(), Rcode::NOTIMP);
        let mut chaos = www.clone();
        chaos[www.len() - 1] = 3;
        assert_eq!(client.ask(&chaos).rcode(), Rcode::REFUSED);
        // Only what is known is told to those who do not want others to be asked.
        let mut known = www.clone();
        known[2] = 0;
        assert_eq!(client.ask(&known).rcode(), Rcode::REFUSED);
        assert!(upstream.asked("www.test").is_empty());
        assert_eq!(client.ask(&www).address(), RIGHT);
        assert_eq!(client.ask(&known).address(), RIGHT);
        // Types that nobody knows yet.
        assert_eq!(client.ask(&query_of(1, "www.test", 65_280)).rcode(), Rcode::NOERROR);
        assert_eq!(resolver.figure("overflowed"), 0);
    });
}

#[test]
fn noise_ends_nothing() {
    on_each("", |resolver, _| {
        let client = resolver.client();
        let whole = with_edns(query(1, "www.test"), 1232, 0, true);
        let mut seed = 1u64;
        for _ in 0..3000 {
            let mut noise = whole.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % noise.len();
                noise[at] = (seed >> 24) as u8;
            }
            client.send(&noise);
        }
        let again = Client::of(resolver.addresses[0]);
        assert_eq!(again.ask(&query(2, "www.test")).address(), RIGHT);
    });
}

#[test]
fn who_asks_too_much_is_dropped_or_refused() {
    on_each("--max-per-source 10", |mut resolver, _| {
        let client = resolver.client();
        for id in 0..30 {
            client.send(&query(id, "nx.test"));
        }
        let begun = Instant::now();
        for _ in 0..10 {
            client.receive();
        }
        let mut stream = resolver.connect();
        stream.write_all(&framed(&query(77, "nx.test"))).expect("sent");
        let refused = read_framed(&mut stream).rcode();
        let limited = resolver.figure("limited");
        // Where the machine was slow, some of it is forgiven already.
        if begun.elapsed() < Duration::from_millis(50) {
            assert_eq!((refused, limited), (Rcode::REFUSED, 21));
        }
        thread::sleep(Duration::from_millis(1100));
        let fresh = resolver.client();
        assert_eq!(fresh.ask(&query(99, "nx.test")).rcode(), Rcode::NXDOMAIN);
    });
}

#[test]
fn more_questions_than_may_be_under_way_fail_at_once() {
    on_each("--max-outstanding 5 --timeout 20", |mut resolver, upstream| {
        let client = resolver.client();
        for id in 0..8 {
            client.send(&query(id, &format!("held.n{id}.test")));
        }
        resolver.comes_to("busy", 3);
        upstream.release();
        let replies: Vec<_> = (0..8).map(|_| client.receive()).collect();
        let failed = replies.iter().filter(|reply| reply.rcode() == Rcode::SERVFAIL);
        assert_eq!(failed.count(), 3);
        // There is room again.
        assert_eq!(client.ask(&query(9, "www.test")).address(), RIGHT);
    });
}

#[test]
fn a_small_cache_forgets() {
    on_each("--cache 4", |resolver, upstream| {
        let client = resolver.client();
        for round in 0..2 {
            for number in 0..20 {
                let name = format!("name{number}.test");
                assert_eq!(client.ask(&query(round, &name)).address(), RIGHT);
                // Asked for again and again, it stays.
                assert_eq!(client.ask(&query(round, "often.test")).address(), RIGHT);
            }
        }
        assert_eq!(upstream.asked("often.test").len(), 1);
        assert_eq!(upstream.asked("name0.test").len(), 2);
    });
}

#[test]
fn a_circle_of_resolvers_ends() {
    on_each("--timeout 1", |mut resolver, upstream| {
        upstream.ask_instead(resolver.addresses[0]);
        assert_eq!(resolver.client().ask(&query(1, "www.test")).rcode(), Rcode::SERVFAIL);
        // What has come back is the same question, and waits with it.
        assert_eq!(upstream.asked("www.test").len(), 2);
        assert_eq!((resolver.figure("queries"), resolver.figure("joined")), (3, 2));
    });
}

#[test]
fn who_would_ask_himself_does_not_begin() {
    for (listen, upstream) in [
        ("127.0.0.1:5301", "127.0.0.1:5301"),
        ("0.0.0.0:5301", "127.0.0.7:5301"),
        ("[::]:5301", "[::1]:5301"),
    ] {
        let mut resolver = Resolver::start(&format!("--listen {listen} --upstream {upstream}"));
        assert_eq!(resolver.ended().code(), Some(2), "{listen}");
    }
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    for engine in ENGINES {
        let upstream = Upstream::at(Ipv6Addr::LOCALHOST.into());
        let resolver = Resolver::start(&format!(
            "--engine {engine} --listen 0.0.0.0:0 --listen [::]:0 --upstream {}",
            upstream.address
        ));
        let ports: Vec<_> = resolver.addresses.iter().map(SocketAddr::port).collect();
        let local = [("127.0.0.2", ports[0]), ("127.0.0.1", ports[0]), ("::1", ports[1])];
        for (address, port) in local {
            let at = SocketAddr::new(address.parse().expect("an address"), port);
            // A client that is connected takes no reply from elsewhere.
            assert_eq!(Client::of(at).ask(&query(1, "www.test")).address(), RIGHT, "{at}");
            assert_eq!(Client::of(at).ask(&query(2, &format!("p{port}.test"))).address(), RIGHT);
        }
    }
}

#[test]
fn each_poller_has_a_socket() {
    for engine in ENGINES {
        let upstream = Upstream::start();
        let mut resolver = Resolver::start(&format!(
            "--engine {engine} --pollers 3 --listen 127.0.0.1:0 --upstream {}",
            upstream.address
        ));
        for number in 0..40 {
            let client = resolver.client();
            let name = format!("name{}.test", number % 20);
            assert_eq!(client.ask(&query(number, &name)).address(), RIGHT);
        }
        assert_eq!((resolver.figure("hits"), resolver.figure("misses")), (20, 20));
    }
}

#[test]
fn it_ends_when_what_is_under_way_is_answered() {
    on_each("--timeout 20", |mut resolver, upstream| {
        let client = resolver.client();
        let _idle = resolver.connect();
        client.send(&query(1, "held.test"));
        let begun = Instant::now();
        while upstream.asked("held.test").is_empty() {
            assert!(begun.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(2));
        }
        resolver.signal(libc::SIGTERM);
        upstream.release();
        assert_eq!(client.receive().address(), RIGHT);
        assert_eq!(resolver.ended().code(), Some(0));
        assert!(resolver.line().starts_with("queries=1 hits=0 misses=1 "));
    });
}
