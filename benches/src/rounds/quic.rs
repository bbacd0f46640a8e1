//! Rounds of servers of QUIC.

use std::io;

use super::{Runner, everyone};
use crate::load::Outcome;
use crate::plan::Step;
use crate::process;
use crate::quic::load::Spec;
use crate::quic::shape::Shape;
use crate::quic::{self, Options, Server, YARDSTICK};
use crate::report::{Row, Table};
use crate::trace;

impl Runner<'_> {
    pub(super) fn quic_step(&mut self, step: &Step, shape: &Shape) -> Option<Table> {
        self.certify()?;
        let row = |server: &'static Server| Row::new(server.name, server.role, step.rounds);
        let (servers, mut rows) = self.entrants(&step.quic_servers, row);
        let times = (step.warm_ms, step.measure_ms);
        self.measure(step, YARDSTICK, &mut rows, everyone, |runner, index| {
            Ok(runner.quic_cell(servers[index], shape, times, |_, load| load())?.into())
        });
        self.count_calls(step, &mut rows, |runner, index| {
            let core = runner.settings.client_core;
            runner.quic_cell(servers[index], shape, (100, 900), |pid, load| {
                trace::count(pid, core, || Ok(load()?.requests_in_all))
            })
        });
        Some(Table::new(step, YARDSTICK, rows))
    }

    /// Starts a server, and hands its process id and a run of the load generator to `measure`.
    fn quic_cell<T>(
        &mut self,
        server: &Server,
        shape: &Shape,
        (warm_ms, measure_ms): (u64, u64),
        measure: impl FnOnce(u32, &dyn Fn() -> io::Result<Outcome>) -> io::Result<T>,
    ) -> io::Result<T> {
        let certificate = self.certify().ok_or_else(|| io::Error::other("no certificate"))?;
        let (listen, ask, threads) = (process::udp_address()?, shape.ask, shape.threads);
        let options = Options { listen, ask, certificate: certificate.clone(), threads };
        let program = self.program()?;
        let pinned = |core| (threads == 1).then_some(core);
        let core = pinned(self.settings.server_core);
        let process = quic::start(&program, server, &options, core)?;
        let spec = Spec {
            target: listen,
            certificate,
            server_pid: process.pid(),
            ask,
            bytes: shape.bytes,
            connections: shape.connections,
            streams: shape.streams,
            warm_ms,
            measure_ms,
        };
        let core = pinned(self.settings.client_core);
        measure(process.pid(), &|| self.generate("quic-load", &spec, core))
    }
}
