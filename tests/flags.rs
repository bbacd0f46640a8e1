//! The examples' flags: what is wrong with them is said in one line.

mod support;

use std::process::{Command, Output};

use support::example;

fn run(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(example(name));
    command.env_remove("DUOPOLL_ENGINE").args(args).output().expect("the example runs")
}

#[test]
fn a_bad_flag_is_one_line_and_code_2() {
    let bad: [&[&str]; 7] = [
        &["--no-such-flag"],
        &["--engine", "kqueue"],
        &["--pollers", "0"],
        &["--pollers", "many"],
        &["--listen"],
        &["--listen", "nowhere"],
        &["--listen", "127.0.0.1:99999"],
    ];
    for name in ["echo", "redis"] {
        for args in bad {
            let output = run(name, args);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name} {args:?}: {complaint}");
            assert_eq!(complaint.lines().count(), 1, "{name} {args:?}: {complaint}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn an_address_in_use_is_one_line_and_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = run("echo", &["--listen", &address]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains(&address) && complaint.contains("in use"), "{complaint}");
}

#[test]
fn help_names_every_flag() {
    for name in ["echo", "redis"] {
        let output = run(name, &["--help"]);
        assert!(output.status.success());
        let help = String::from_utf8_lossy(&output.stdout);
        for flag in ["--listen", "--engine", "--pollers", "--stats", "--help"] {
            assert!(help.contains(flag), "no {flag} in: {help}");
        }
    }
}

#[test]
fn the_environment_decides_where_the_flag_says_auto() {
    let mut command = Command::new(example("echo"));
    command.env("DUOPOLL_ENGINE", "kqueue").args(["--listen", "127.0.0.1:0"]);
    let output = command.output().expect("the example runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains("DUOPOLL_ENGINE") && complaint.contains("kqueue"), "{complaint}");
}
