//! How a report is decided on once it is known that it is awaited.

use floret_core::{ClientId, ClientUpdate, Digest, Layout, Receipt, Round, Time, Version};

use crate::clipped::Admitted;
use crate::config::RunConfig;
use crate::message::{Record, Rejection, Reply, Report, Step};

/// Where the work of a client stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Standing<'a> {
    /// It is awaited until this time.
    Awaited(Time),
    /// It counts.
    Counted(&'a Receipt),
}

/// An answer that changes nothing.
pub(crate) fn answer(reply: Result<Reply, Rejection>) -> Step {
    Step { records: Vec::new(), reply }
}

/// What updates are held against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) layout: &'a Layout,
    /// The version that work starts from; where work may start from several, they freeze the same.
    pub(crate) version: Version,
}

/// Decides on an awaited update, which counts with `weight` if it is sound. A refusal of what the
/// update says is a fact of the round.
pub(crate) fn decide(terms: Terms<'_>, client: &ClientId, report: Report, weight: u32) -> Step {
    let Report { update, payload_digest, downloaded_bytes } = report;
    let (round, num_examples) = (update.round, update.num_examples);
    let num_steps = update.num_steps;
    let payload_bytes = update.payload.bytes().len() as u64;
    match admit(terms, update) {
        Ok(update) => {
            let receipt = Receipt {
                round,
                payload_digest,
                payload_bytes,
                num_examples,
                num_steps,
                weight,
                downloaded_bytes,
            };
            let (client, told) = (client.clone(), receipt.clone());
            let record = Record::Accepted { client, receipt, update };
            Step { records: vec![record], reply: Ok(Reply::Accepted(told)) }
        }
        Err(rejection) => refuse(client, rejection),
    }
}

/// A refusal that is a fact of the round: it takes the client out of it.
pub(crate) fn refuse(client: &ClientId, rejection: Rejection) -> Step {
    let (code, reason) = (rejection.code().to_owned(), rejection.to_string());
    let record = Record::Refused { client: client.clone(), code, reason };
    Step { records: vec![record], reply: Err(rejection) }
}

/// The answer to a second report: the same receipt for the same payload, a refusal for another.
pub(crate) fn repeat(receipt: &Receipt, payload_digest: Digest, round: Round) -> Step {
    answer(if receipt.payload_digest == payload_digest {
        Ok(Reply::Accepted(receipt.clone()))
    } else {
        Err(Rejection::DifferentReport(round))
    })
}

fn admit(terms: Terms<'_>, update: ClientUpdate) -> Result<Admitted, Rejection> {
    let Terms { config, layout, version } = terms;
    if update.num_examples == 0 {
        return Err(Rejection::ZeroExamples);
    }
    let update = Admitted::new(update.payload, layout, config.aggregation.clip_norm)?;
    match config.scope(version).holds(layout, update.delta().values()) {
        true => Ok(update),
        false => Err(Rejection::FrozenFactor),
    }
}
