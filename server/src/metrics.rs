//! Counters for `/metrics`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floret_aggregator::combine::residual::Residual;
use floret_aggregator::coordinator::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Everything that the server counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) connections: Gauge,
    pub(crate) check_ins_waiting: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    /// gRPC message bytes from devices, before TLS.
    pub(crate) bytes_up: Counter,
    /// gRPC message bytes to devices, before TLS.
    pub(crate) bytes_down: Counter,
    calls: Family<Call, Counter>,
    refusals: Family<Reason, Counter>,
    phases: Family<Phase, Histogram>,
    concerns: Family<Kind, Gauge>,
    run: RunMetrics,
}

/// What the coordinator counts, over the whole run and all restarts.
#[derive(Debug, Default)]
struct RunMetrics {
    rounds_committed: Counter,
    rounds_abandoned: Counter,
    updates_accepted: Counter,
    updates_refused: Counter,
    assignments_declined: Counter,
    drop_outs: Counter,
    update_bytes: Counter,
    adapter_bytes: Counter,
    version: Gauge,
    round: Gauge,
    population: Gauge,
    cohort: Gauge,
    buffered: Gauge,
    at_work: Gauge,
    ended: Gauge,
    residual: Gauge<f64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let durations = || Histogram::new(exponential_buckets(0.01, 3.0, 14));
        let mut metrics = Self {
            registry: Registry::with_prefix("floret"),
            connections: Gauge::default(),
            check_ins_waiting: Gauge::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            bytes_up: Counter::default(),
            bytes_down: Counter::default(),
            calls: Family::default(),
            refusals: Family::default(),
            phases: Family::new_with_constructor(durations as fn() -> Histogram),
            concerns: Family::default(),
            run: RunMetrics::default(),
        };
        metrics.register_server();
        metrics.register_run();
        metrics
    }

    fn register_server(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections", "Open connections", self.connections.clone());
        let waiting = self.check_ins_waiting.clone();
        registry.register("check_ins_waiting", "Check-ins that wait for their turn", waiting);
        for (name, help, counter) in [
            ("connections_refused", "Connections over the limit", &self.connections_refused),
            (
                "handshakes_failed",
                "TLS handshakes without a valid device certificate",
                &self.handshakes_failed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        let (up, down) = ("gRPC bytes from devices", "gRPC bytes to devices");
        registry.register_with_unit("received", up, Unit::Bytes, self.bytes_up.clone());
        registry.register_with_unit("sent", down, Unit::Bytes, self.bytes_down.clone());
        registry.register("calls", "Calls answered, by name", self.calls.clone());
        registry.register("refusals", "Calls refused, by reason", self.refusals.clone());
        let help = "What people should hear of, by kind";
        registry.register("concerns", help, self.concerns.clone());
        let help = "Duration of the phases of a round";
        registry.register_with_unit("phase_duration", help, Unit::Seconds, self.phases.clone());
    }

    fn register_run(&mut self) {
        let (registry, run) = (&mut self.registry, &self.run);
        for (name, help, counter) in [
            ("rounds_committed", "Rounds that gave a new adapter", &run.rounds_committed),
            ("rounds_abandoned", "Rounds that gave nothing", &run.rounds_abandoned),
            ("updates_accepted", "Updates that counted", &run.updates_accepted),
            ("updates_refused", "Updates that were refused", &run.updates_refused),
            ("assignments_declined", "Assignments declined", &run.assignments_declined),
            ("drop_outs", "Assignments never answered", &run.drop_outs),
            ("update_bytes", "Bytes of the updates that counted", &run.update_bytes),
            ("adapter_bytes", "Bytes of adapters sent for those", &run.adapter_bytes),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("version", "Version of the adapter", &run.version),
            ("round", "The last round that was opened", &run.round),
            ("population", "Devices connected, while selecting", &run.population),
            ("cohort", "Devices chosen, while training", &run.cohort),
            ("buffered_updates", "Updates in the buffer, while buffering", &run.buffered),
            ("devices_at_work", "Devices whose update is awaited, while buffering", &run.at_work),
            ("run_ended", "1 once the run is over", &run.ended),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let help = "Distance of the mean of factors from that of their products, as a share of it";
        registry.register("residual_ratio", help, run.residual.clone());
    }

    /// Counts a call that was answered.
    pub(crate) fn answered(&self, call: &'static str) {
        self.calls.get_or_create(&Call { call }).inc();
    }

    /// Counts a refused call.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// Notes how long a phase lasted.
    pub(crate) fn phase_ended(&self, phase: &'static str, lasted: Duration) {
        self.phases.get_or_create(&Phase { phase }).observe(lasted.as_secs_f64());
    }

    /// Notes what a round that is over says of the mean of its factors.
    pub(crate) fn measured(&self, residual: &Residual) {
        self.run.residual.set(residual.relative);
    }

    /// Takes over the coordinator's own counts.
    pub(crate) fn observe(&self, status: &Status) {
        let (run, totals) = (&self.run, &status.totals);
        let set = |counter: &Counter<u64, AtomicU64>, value| {
            counter.inner().store(value, Ordering::Relaxed);
        };
        set(&run.rounds_committed, totals.rounds_committed);
        set(&run.rounds_abandoned, totals.rounds_abandoned);
        set(&run.updates_accepted, totals.updates_accepted);
        set(&run.updates_refused, totals.updates_refused);
        set(&run.assignments_declined, totals.assignments_declined);
        set(&run.drop_outs, totals.drop_outs);
        set(&run.update_bytes, totals.bytes_up);
        set(&run.adapter_bytes, totals.bytes_down);
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        run.version.set(status.version.cast_signed());
        run.round.set(status.round.into());
        run.population.set(count(status.population.unwrap_or(0)));
        run.cohort.set(count(status.cohort.unwrap_or(0)));
        let buffered = status.buffer.and(status.accepted);
        run.buffered.set(count(buffered.unwrap_or(0)));
        run.at_work.set(count(status.at_work.unwrap_or(0)));
        run.ended.set(status.end.is_some().into());
        self.concerns.clear();
        for concern in &status.concerns {
            self.concerns.get_or_create(&Kind { kind: concern.kind }).inc();
        }
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
