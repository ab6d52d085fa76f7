//! Messages of the wire contract, as protobuf bytes and then as core types: the first byte chooses
//! the message.

use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::{Digest, Plan, Receipt, Round, RunId, Seed, Signature, Version};
use floret_device::limits::{Limits, LocalModel, check_plan};
use floret_proto::v1::check_in_response::Answer;
use floret_proto::v1::standing_response::Standing;
use floret_proto::{convert, v1};
use prost::Message;

use super::model_fixture::{layouts, lora, models};
use super::{Target, choice};

pub(super) const TARGET: Target =
    Target { name: "messages", run, limit, seeds, share: 12, longest: 600 };

const KINDS: usize = 10;
const PAYLOAD_MAX: usize = 1000;

fn run(data: &[u8]) -> bool {
    let (kind, bytes) = choice(data, KINDS);
    match kind {
        0 => v1::Plan::decode(bytes).is_ok_and(plan),
        1 => v1::CheckInResponse::decode(bytes).is_ok_and(|message| match message.answer {
            Some(Answer::Plan(message)) => plan(message),
            Some(Answer::End(end)) => convert::end_digest(&end).is_ok(),
            answer => answer.is_some(),
        }),
        2 => v1::CheckInRequest::decode(bytes).is_ok_and(|message| {
            let spoken = message.compressions.iter().filter_map(|name| convert::codec(*name));
            spoken.count() > 0
        }),
        3 => v1::ReportHeader::decode(bytes).is_ok_and(|message| header(&message)),
        4 => v1::ReportResponse::decode(bytes).is_ok_and(|message| {
            convert::receipt(&message).is_ok_and(|(receipt, signature)| {
                convert::report_response(&receipt, &signature) == message
            })
        }),
        5 => v1::DeclineRequest::decode(bytes).is_ok(),
        6 => v1::FetchAdapterRequest::decode(bytes).is_ok_and(|message| {
            convert::FetchRequest::try_from(message.clone())
                .is_ok_and(|request| v1::FetchAdapterRequest::from(request) == message)
        }),
        7 => v1::StandingRequest::decode(bytes).is_ok_and(|message| {
            convert::StandingRequest::try_from(message.clone())
                .is_ok_and(|request| v1::StandingRequest::from(request) == message)
        }),
        8 => v1::StandingResponse::decode(bytes).is_ok_and(|message| match message.standing {
            Some(Standing::Receipt(receipt)) => convert::receipt(&receipt).is_ok(),
            standing => standing.is_some(),
        }),
        _ => v1::AdapterChunk::decode(bytes).is_ok_and(|chunk| {
            convert::step_lengths(&chunk, PAYLOAD_MAX)
                .is_ok_and(|lengths| lengths.iter().sum::<usize>() <= PAYLOAD_MAX)
        }),
    }
}

/// A plan that is accepted says the same when it is sent on, and a device can judge it.
fn plan(message: v1::Plan) -> bool {
    let Ok(plan) = Plan::try_from(message) else { return false };
    let bytes = v1::Plan::from(plan.clone()).encode_to_vec();
    let again = v1::Plan::decode(bytes.as_slice()).map(Plan::try_from);
    let Ok(Ok(again)) = again else { panic!("an accepted plan is refused when it is sent on") };
    assert_eq!(v1::Plan::from(again).encode_to_vec(), bytes);
    let local = LocalModel { config: models()[0].clone(), digests: plan.base };
    let accepted = check_plan(&plan, &local, &Limits::default());
    accepted.is_ok() || plan.training.validate().is_ok()
}

fn header(message: &v1::ReportHeader) -> bool {
    let Ok(header) = convert::ReportHeader::check(message, PAYLOAD_MAX) else { return false };
    assert!(header.offset <= header.payload_bytes && header.payload_bytes <= PAYLOAD_MAX);
    assert_eq!(&v1::ReportHeader::from(header), message);
    true
}

/// An empty text in a list is two bytes on the wire and 24 in memory, in a list that doubles; a
/// plan is held in four forms, and a device's layout has up to 14 tensors.
fn limit(data: &[u8]) -> usize {
    80 * data.len() + 16 * 1024
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |kind: u8, message: &dyn Fn() -> Vec<u8>| [vec![kind], message()].concat();
    let end = v1::RunEnd {
        completed: true,
        version: 7,
        message: "the run is complete".into(),
        adapter_digest: Digest::of(b"a").0.to_vec(),
    };
    let answer = |answer| v1::CheckInResponse { answer: Some(answer) }.encode_to_vec();
    let receipt = Receipt {
        round: Round(3),
        payload_digest: Digest::of(b"p"),
        payload_bytes: 400,
        num_examples: 12,
        num_steps: 1,
        weight: 9,
        downloaded_bytes: 800,
    };
    let receipt = convert::report_response(&receipt, &Signature([7; 64]));
    let header = convert::ReportHeader {
        run: name(),
        round: Round(3),
        num_examples: 120,
        num_steps: 1,
        payload_bytes: 400,
        payload_digest: Digest::of(b"p"),
        offset: 100,
    };
    let question = convert::StandingRequest {
        run: name(),
        round: Round(3),
        payload_digest: Some(Digest::of(b"p")),
    };
    let over = v1::Over { reason: "unknown-round".into(), message: "check in".into() };
    let stands = |standing| v1::StandingResponse { standing: Some(standing) }.encode_to_vec();
    let fetch = v1::FetchAdapterRequest {
        version: 1 << 40,
        adapter_digest: Digest::of(b"a").0.to_vec(),
        offset: 4096,
        held_digest: Digest::of(b"h").0.to_vec(),
    };
    let decline = v1::DeclineRequest { round: 3, reason: "low battery".into() };
    let data = vec![0, 0, 128, 63];
    vec![
        ("plan", with(0, &|| v1::Plan::from(sample_plan()).encode_to_vec())),
        ("answer-plan", with(1, &|| answer(Answer::Plan(sample_plan().into())))),
        ("answer-end", with(1, &|| answer(Answer::End(end.clone())))),
        (
            "answer-retry",
            with(1, &|| {
                let window = convert::retry_window(Duration::from_secs(1), Duration::MAX);
                answer(Answer::Retry(window))
            }),
        ),
        (
            "check-in",
            with(2, &|| {
                let compressions = vec![1, 2, 0, 99];
                v1::CheckInRequest { protocol_min: 1, protocol_max: 1, compressions }
                    .encode_to_vec()
            }),
        ),
        ("header", with(3, &|| v1::ReportHeader::from(header.clone()).encode_to_vec())),
        ("receipt", with(4, &|| receipt.encode_to_vec())),
        ("decline", with(5, &|| decline.encode_to_vec())),
        ("fetch", with(6, &|| fetch.encode_to_vec())),
        ("standing", with(7, &|| v1::StandingRequest::from(question.clone()).encode_to_vec())),
        (
            "standing-awaited",
            with(8, &|| stands(Standing::Awaited(convert::awaited(100, Duration::from_secs(9))))),
        ),
        ("standing-receipt", with(8, &|| stands(Standing::Receipt(receipt.clone())))),
        ("standing-over", with(8, &|| stands(Standing::Over(over.clone())))),
        (
            "adapter-chunk",
            with(9, &|| {
                let (data, step_bytes) = (data.clone().into(), vec![1, 3]);
                v1::AdapterChunk { data, step_bytes }.encode_to_vec()
            }),
        ),
    ]
}

fn name() -> RunId {
    "run".parse().unwrap_or_else(|error| unreachable!("{error}"))
}

fn sample_plan() -> Plan {
    Plan {
        run: name(),
        round: Round(3),
        version: Version(2),
        adapter_digest: Digest::of(b"adapter"),
        layout_digest: layouts()[0].digest(),
        base: BaseDigests { base: Digest::of(b"base"), tokenizer: Digest::of(b"tokenizer") },
        lora: lora(1, &[TargetModule::QProj]),
        folded_rank: 1,
        training: TrainingConfig::default(),
        compression: Compression::Int8,
        error_feedback: 0.95,
        clip_norm: 0.5,
        summands: 10,
        seed: Seed::from_number(1),
        report_within: Duration::from_secs(60),
    }
}
