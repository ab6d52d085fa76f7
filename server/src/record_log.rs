//! One structured line for each fact of the run. Never a payload's values.

use floret_aggregator::{Record, RoundSummary};
use tracing::{debug, info, warn};

pub(crate) fn log(record: &Record) {
    match record {
        Record::CheckedIn { client, .. } => debug!(%client, "checked in"),
        Record::RoundOpened { round, cohort, .. } => {
            info!(%round, cohort = cohort.len(), "round opened");
        }
        Record::Assigned { client, assignment } => {
            info!(round = %assignment.round, %client, version = %assignment.version, "work given out");
        }
        Record::DroppedOut { client } => info!(%client, "work given up: no report came in time"),
        Record::Accepted { client, receipt, .. } => {
            let payload = receipt.payload_digest.short();
            info!(
                round = %receipt.round,
                %client,
                weight = receipt.weight,
                payload,
                bytes_up = receipt.payload_bytes,
                bytes_down = receipt.downloaded_bytes,
                "update accepted"
            );
        }
        Record::Refused { client, code, reason } => {
            warn!(%client, reason = code, detail = reason, "update refused");
        }
        Record::Declined { client, reason } => info!(%client, reason, "assignment declined"),
        Record::RoundCommitted { summary, after } => {
            let adapter = after.adapter.digest().short();
            info!(version = %summary.base_version.next(), adapter, "new adapter");
            closed(summary, "round committed");
        }
        Record::RoundAbandoned { summary } => {
            warn!(round = %summary.round, reason = summary.reason, "round abandoned");
            closed(summary, "round abandoned");
        }
        Record::RunEnded(end) => {
            info!(completed = end.completed, version = %end.version, detail = end.message, "run ended");
        }
    }
}

fn closed(summary: &RoundSummary, what: &'static str) {
    info!(
        round = %summary.round,
        selected = summary.selected.len(),
        accepted = summary.accepted.len(),
        weight = summary.weight,
        bytes_up = summary.bytes_up(),
        bytes_down = summary.bytes_down(),
        refused = summary.refused.len(),
        declined = summary.declined.len(),
        dropped_out = summary.dropped_out.len(),
        residual = summary.residual.map(|residual| residual.relative),
        duration_ms = summary.duration().as_millis() as u64,
        detail = summary.reason,
        "{what}"
    );
}
