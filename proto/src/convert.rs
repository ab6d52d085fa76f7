//! Messages to and from core types. What comes in is checked: lengths, ranges, digests.

use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::lora::TargetModule;
use floret_core::payload::{Bits, Codec, Compression, Linear, Sparse};
use floret_core::plan::TrainingConfig;
use floret_core::scope::Freeze;
use floret_core::{Digest, LoraConfig, Plan, Receipt, Round, RunId, Seed, Signature, Version};

use crate::v1;

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message's {field} {problem}")]
pub struct InvalidMessage {
    field: &'static str,
    problem: String,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> InvalidMessage {
    InvalidMessage { field, problem: problem.into() }
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, InvalidMessage> {
    Digest::try_from(bytes).map_err(|_| invalid(field, "is no digest of 32 bytes"))
}

/// An empty field stands for no digest.
fn optional_digest(field: &'static str, bytes: &[u8]) -> Result<Option<Digest>, InvalidMessage> {
    if bytes.is_empty() { Ok(None) } else { digest(field, bytes).map(Some) }
}

/// No digest is an empty field.
#[must_use]
pub fn digest_bytes(digest: Option<Digest>) -> Vec<u8> {
    digest.map_or_else(Vec::new, |digest| digest.0.to_vec())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<Codec> for v1::Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::None,
            Codec::Int8 => Self::Int8,
            Codec::Bits => Self::Bits,
            Codec::Sparse => Self::Sparse,
            Codec::Linear => Self::Linear,
        }
    }
}

/// The core's name of a codec, if this build knows it.
#[must_use]
pub fn codec(value: i32) -> Option<Codec> {
    match v1::Compression::try_from(value) {
        Ok(v1::Compression::None) => Some(Codec::None),
        Ok(v1::Compression::Int8) => Some(Codec::Int8),
        Ok(v1::Compression::Bits) => Some(Codec::Bits),
        Ok(v1::Compression::Sparse) => Some(Codec::Sparse),
        Ok(v1::Compression::Linear) => Some(Codec::Linear),
        Ok(v1::Compression::Unspecified) | Err(_) => None,
    }
}

/// How a plan's deltas are encoded: its codec, and the settings of that.
fn compression(plan: &v1::Plan) -> Result<Compression, InvalidMessage> {
    let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    match codec(plan.compression) {
        Some(Codec::None) => Ok(Compression::None),
        Some(Codec::Int8) => Ok(Compression::Int8),
        Some(Codec::Bits) => {
            let bits = plan.bits.ok_or_else(|| invalid("bits", "is missing"))?;
            let bits = Bits::new(small(bits.width), small(bits.segments));
            bits.map(Compression::Bits).map_err(|error| invalid("bits", format!("{error}")))
        }
        Some(Codec::Sparse) => {
            let sparse = plan.sparse.ok_or_else(|| invalid("sparse", "is missing"))?;
            let sparse = Sparse::new(u16::try_from(sparse.per_mille).unwrap_or(u16::MAX));
            sparse.map(Compression::Sparse).map_err(|error| invalid("sparse", format!("{error}")))
        }
        Some(Codec::Linear) => {
            let linear = plan.linear.ok_or_else(|| invalid("linear", "is missing"))?;
            let linear = Linear::new(small(linear.word_bits), small(linear.segments));
            linear.map(Compression::Linear).map_err(|error| invalid("linear", format!("{error}")))
        }
        None => Err(invalid("compression", "is not one that this build knows")),
    }
}

fn bits(compression: Compression) -> Option<v1::Bits> {
    let Compression::Bits(bits) = compression else { return None };
    Some(v1::Bits { width: bits.width().into(), segments: bits.segments().into() })
}

fn sparse(compression: Compression) -> Option<v1::Sparse> {
    let Compression::Sparse(sparse) = compression else { return None };
    Some(v1::Sparse { per_mille: sparse.per_mille().into() })
}

fn linear(compression: Compression) -> Option<v1::Linear> {
    let Compression::Linear(linear) = compression else { return None };
    Some(v1::Linear { word_bits: linear.word_bits().into(), segments: linear.segments().into() })
}

impl From<Plan> for v1::Plan {
    fn from(plan: Plan) -> Self {
        let targets = plan.lora.target_modules.iter().map(|target| target.name().to_owned());
        Self {
            run: plan.run.to_string(),
            round: plan.round.0,
            version: plan.version.0,
            adapter_digest: plan.adapter_digest.0.to_vec(),
            layout_digest: plan.layout_digest.0.to_vec(),
            base_digest: plan.base.base.0.to_vec(),
            tokenizer_digest: plan.base.tokenizer.0.to_vec(),
            lora: Some(v1::Lora {
                rank: u32::try_from(plan.lora.rank).unwrap_or(u32::MAX),
                alpha: plan.lora.alpha,
                use_rslora: plan.lora.use_rslora,
                target_modules: targets.collect(),
            }),
            training: Some(plan.training.into()),
            compression: v1::Compression::from(plan.compression.codec()).into(),
            clip_norm: plan.clip_norm,
            seed: plan.seed.0.to_vec(),
            report_within_ms: millis(plan.report_within),
            bits: bits(plan.compression),
            sparse: sparse(plan.compression),
            error_feedback: plan.error_feedback,
            linear: linear(plan.compression),
            summands: plan.summands,
            folded_rank: u32::try_from(plan.folded_rank).unwrap_or(u32::MAX),
        }
    }
}

impl TryFrom<v1::Plan> for Plan {
    type Error = InvalidMessage;

    fn try_from(plan: v1::Plan) -> Result<Self, InvalidMessage> {
        let compression = compression(&plan)?;
        let lora = plan.lora.ok_or_else(|| invalid("lora", "is missing"))?;
        let training = plan.training.ok_or_else(|| invalid("training", "is missing"))?;
        let seed: [u8; 32] =
            plan.seed.try_into().map_err(|_| invalid("seed", "is not 32 bytes long"))?;
        Ok(Self {
            run: plan.run.parse().map_err(|_| invalid("run", "is no valid name"))?,
            round: Round(plan.round),
            version: Version(plan.version),
            adapter_digest: digest("adapter_digest", &plan.adapter_digest)?,
            layout_digest: digest("layout_digest", &plan.layout_digest)?,
            base: BaseDigests {
                base: digest("base_digest", &plan.base_digest)?,
                tokenizer: digest("tokenizer_digest", &plan.tokenizer_digest)?,
            },
            lora: lora.try_into()?,
            folded_rank: plan.folded_rank as usize,
            training: training.try_into()?,
            compression,
            error_feedback: plan.error_feedback,
            clip_norm: plan.clip_norm,
            summands: plan.summands,
            seed: Seed(seed),
            report_within: Duration::from_millis(plan.report_within_ms),
        })
    }
}

impl TryFrom<v1::Lora> for LoraConfig {
    type Error = InvalidMessage;

    fn try_from(lora: v1::Lora) -> Result<Self, InvalidMessage> {
        if lora.target_modules.len() > TargetModule::ALL.len() {
            return Err(invalid("lora.target_modules", "names too many modules"));
        }
        let target = |name: &String| {
            TargetModule::from_name(name)
                .ok_or_else(|| invalid("lora.target_modules", "names an unknown module"))
        };
        let config = Self {
            rank: lora.rank as usize,
            alpha: lora.alpha,
            use_rslora: lora.use_rslora,
            target_modules: lora.target_modules.iter().map(target).collect::<Result<_, _>>()?,
        };
        config.validate().map_err(|error| invalid("lora", format!("is not valid: {error}")))?;
        Ok(config)
    }
}

impl From<TrainingConfig> for v1::Training {
    fn from(training: TrainingConfig) -> Self {
        Self {
            max_steps: training.max_steps,
            max_epochs: training.max_epochs,
            batch_size: training.batch_size,
            sequence_length: training.sequence_length,
            accumulation: training.accumulation,
            learning_rate: training.learning_rate,
            beta1: training.beta1,
            beta2: training.beta2,
            epsilon: training.epsilon,
            weight_decay: training.weight_decay,
            max_grad_norm: training.max_grad_norm,
            freeze: v1::Freeze::from(training.freeze).into(),
            nested_ranks: training.nested_ranks,
            personal_b: training.personal_b,
            proximal: training.proximal,
            scaffold: training.scaffold,
            alignment: training.alignment,
        }
    }
}

impl From<Freeze> for v1::Freeze {
    fn from(freeze: Freeze) -> Self {
        match freeze {
            Freeze::None => Self::None,
            Freeze::A => Self::A,
            Freeze::Alternate => Self::Alternate,
        }
    }
}

impl TryFrom<v1::Training> for TrainingConfig {
    type Error = InvalidMessage;

    fn try_from(training: v1::Training) -> Result<Self, InvalidMessage> {
        let freeze = match v1::Freeze::try_from(training.freeze) {
            Ok(v1::Freeze::None) => Freeze::None,
            Ok(v1::Freeze::A) => Freeze::A,
            Ok(v1::Freeze::Alternate) => Freeze::Alternate,
            Err(_) => return Err(invalid("training.freeze", "is not one that this build knows")),
        };
        Ok(Self {
            max_steps: training.max_steps,
            max_epochs: training.max_epochs,
            batch_size: training.batch_size,
            sequence_length: training.sequence_length,
            accumulation: training.accumulation,
            learning_rate: training.learning_rate,
            final_learning_rate: 0.0,
            beta1: training.beta1,
            beta2: training.beta2,
            epsilon: training.epsilon,
            weight_decay: training.weight_decay,
            max_grad_norm: training.max_grad_norm,
            freeze,
            nested_ranks: training.nested_ranks,
            personal_b: training.personal_b,
            proximal: training.proximal,
            scaffold: training.scaffold,
            alignment: training.alignment,
        })
    }
}

/// The header of a report, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportHeader {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// The device's claim.
    pub num_examples: u32,
    /// The device's claim.
    pub num_steps: u32,
    /// Length of the payload, in bytes.
    pub payload_bytes: usize,
    /// Digest of the payload.
    pub payload_digest: Digest,
    /// Where the data that follows begins; within the payload.
    pub offset: usize,
}

impl ReportHeader {
    /// Checks a header against the largest payload that the layout permits.
    ///
    /// # Errors
    /// No digest, a length beyond that limit, or an offset beyond that length.
    pub fn check(header: &v1::ReportHeader, payload_max: usize) -> Result<Self, InvalidMessage> {
        let payload_bytes = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        if payload_bytes > payload_max {
            let problem = format!("is {payload_bytes}, more than the layout's {payload_max}");
            return Err(invalid("payload_bytes", problem));
        }
        let offset = usize::try_from(header.offset).unwrap_or(usize::MAX);
        if offset > payload_bytes {
            let problem = format!("is {offset}, beyond the payload's {payload_bytes} bytes");
            return Err(invalid("offset", problem));
        }
        Ok(Self {
            run: header.run.parse().map_err(|_| invalid("run", "is no valid name"))?,
            round: Round(header.round),
            num_examples: header.num_examples,
            num_steps: header.num_steps,
            payload_bytes,
            payload_digest: digest("payload_digest", &header.payload_digest)?,
            offset,
        })
    }
}

impl From<ReportHeader> for v1::ReportHeader {
    fn from(header: ReportHeader) -> Self {
        Self {
            run: header.run.to_string(),
            round: header.round.0,
            num_examples: header.num_examples,
            num_steps: header.num_steps,
            payload_bytes: header.payload_bytes as u64,
            payload_digest: header.payload_digest.0.to_vec(),
            offset: header.offset as u64,
        }
    }
}

/// The question where an update stands, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingRequest {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// Digest of the payload, once there is one.
    pub payload_digest: Option<Digest>,
}

impl TryFrom<v1::StandingRequest> for StandingRequest {
    type Error = InvalidMessage;

    fn try_from(request: v1::StandingRequest) -> Result<Self, InvalidMessage> {
        Ok(Self {
            run: request.run.parse().map_err(|_| invalid("run", "is no valid name"))?,
            round: Round(request.round),
            payload_digest: optional_digest("payload_digest", &request.payload_digest)?,
        })
    }
}

impl From<StandingRequest> for v1::StandingRequest {
    fn from(request: StandingRequest) -> Self {
        Self {
            run: request.run.to_string(),
            round: request.round.0,
            payload_digest: digest_bytes(request.payload_digest),
        }
    }
}

/// The request of a download, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchRequest {
    /// Version of the adapter.
    pub version: Version,
    /// Its digest, if the device knows it.
    pub digest: Option<Digest>,
    /// The byte at which to begin.
    pub offset: usize,
    /// Digest of an adapter that the device holds.
    pub held: Option<Digest>,
}

impl TryFrom<v1::FetchAdapterRequest> for FetchRequest {
    type Error = InvalidMessage;

    fn try_from(request: v1::FetchAdapterRequest) -> Result<Self, InvalidMessage> {
        Ok(Self {
            version: Version(request.version),
            digest: optional_digest("adapter_digest", &request.adapter_digest)?,
            offset: usize::try_from(request.offset).unwrap_or(usize::MAX),
            held: optional_digest("held_digest", &request.held_digest)?,
        })
    }
}

impl From<FetchRequest> for v1::FetchAdapterRequest {
    fn from(request: FetchRequest) -> Self {
        Self {
            version: request.version.0,
            adapter_digest: digest_bytes(request.digest),
            offset: request.offset as u64,
            held_digest: digest_bytes(request.held),
        }
    }
}

/// Lengths of the steps that an adapter's first chunk announces, for an adapter of `adapter_bytes`; none
/// for the adapter itself.
///
/// # Errors
/// Steps that are larger than the adapter itself, all together.
pub fn step_lengths(
    chunk: &v1::AdapterChunk,
    adapter_bytes: usize,
) -> Result<Vec<usize>, InvalidMessage> {
    let mut left = adapter_bytes as u64;
    for length in &chunk.step_bytes {
        left = left.checked_sub(*length).ok_or_else(|| {
            invalid("step_bytes", format!("are more than the adapter's {adapter_bytes} bytes"))
        })?;
    }
    // Each fits, since all together do.
    Ok(chunk.step_bytes.iter().map(|length| *length as usize).collect())
}

/// Digest of a run's last adapter, if the server has told it.
///
/// # Errors
/// A digest of another length than a digest's.
pub fn end_digest(end: &v1::RunEnd) -> Result<Option<Digest>, InvalidMessage> {
    optional_digest("adapter_digest", &end.adapter_digest)
}

/// That an update is awaited, of which `received` bytes are kept.
#[must_use]
pub fn awaited(received: usize, report_within: Duration) -> v1::Awaited {
    v1::Awaited { received_bytes: received as u64, report_within_ms: millis(report_within) }
}

/// A signed receipt as a message.
#[must_use]
pub fn report_response(receipt: &Receipt, signature: &Signature) -> v1::ReportResponse {
    v1::ReportResponse {
        round: receipt.round.0,
        payload_digest: receipt.payload_digest.0.to_vec(),
        weight: receipt.weight,
        payload_bytes: receipt.payload_bytes,
        num_examples: receipt.num_examples,
        num_steps: receipt.num_steps,
        downloaded_bytes: receipt.downloaded_bytes,
        signature: signature.0.to_vec(),
    }
}

/// The receipt that a message holds, and the signature that came with it.
///
/// # Errors
/// No digest, or no signature.
pub fn receipt(message: &v1::ReportResponse) -> Result<(Receipt, Signature), InvalidMessage> {
    let signature = message.signature.as_slice().try_into();
    let signature = signature.map_err(|_| invalid("signature", "is not 64 bytes long"))?;
    let receipt = Receipt {
        round: Round(message.round),
        payload_digest: digest("payload_digest", &message.payload_digest)?,
        payload_bytes: message.payload_bytes,
        num_examples: message.num_examples,
        num_steps: message.num_steps,
        weight: message.weight,
        downloaded_bytes: message.downloaded_bytes,
    };
    Ok((receipt, Signature(signature)))
}

/// A retry window as a message.
#[must_use]
pub fn retry_window(earliest: Duration, latest: Duration) -> v1::RetryWindow {
    v1::RetryWindow { earliest_ms: millis(earliest), latest_ms: millis(latest) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn plan() -> Plan {
        let digest = Digest::of(b"x");
        Plan {
            run: "run".parse().unwrap(),
            round: Round(3),
            version: Version(2),
            adapter_digest: digest,
            layout_digest: digest,
            base: BaseDigests { base: digest, tokenizer: digest },
            lora: LoraConfig {
                rank: 8,
                alpha: 16.0,
                use_rslora: true,
                target_modules: vec![TargetModule::QProj, TargetModule::DownProj],
            },
            folded_rank: 3,
            training: TrainingConfig {
                max_steps: 7,
                max_epochs: 2,
                freeze: Freeze::Alternate,
                nested_ranks: true,
                personal_b: true,
                proximal: 0.5,
                scaffold: true,
                alignment: 0.25,
                ..TrainingConfig::default()
            },
            compression: Compression::Int8,
            error_feedback: 0.5,
            clip_norm: 0.5,
            summands: 13,
            seed: Seed::from_number(1),
            report_within: Duration::from_millis(12_345),
        }
    }

    #[test]
    fn plans_round_trip() {
        for text in ["none", "int8", "bits1", "bits3/16", "sparse0.1%", "linear24/3"] {
            let plan = Plan { compression: text.parse().unwrap(), ..plan() };
            assert_eq!(Plan::try_from(v1::Plan::from(plan.clone())).unwrap(), plan);
        }
        for known in Codec::ALL {
            assert_eq!(codec(v1::Compression::from(known).into()), Some(known));
        }
    }

    fn bits_of(width: u32, segments: u32) -> Option<v1::Bits> {
        Some(v1::Bits { width, segments })
    }

    #[test]
    fn broken_plans_name_the_field() {
        type Break = fn(&mut v1::Plan);
        let breaks: [(Break, &str); 13] = [
            (|plan| plan.training.as_mut().unwrap().freeze = 3, "freeze"),
            (|plan| plan.lora = None, "lora"),
            (|plan| plan.compression = 3, "bits"),
            (|plan| plan.compression = 4, "sparse"),
            (|plan| plan.compression = 5, "linear"),
            (|plan| (plan.compression, plan.bits) = (3, bits_of(5, 1)), "bits"),
            (|plan| (plan.compression, plan.bits) = (3, bits_of(1, u32::MAX)), "bits"),
            (|plan| plan.training = None, "training"),
            (|plan| plan.seed.truncate(31), "seed"),
            (|plan| plan.base_digest.clear(), "base_digest"),
            (|plan| plan.compression = 99, "compression"),
            (|plan| plan.run = "../x".into(), "run"),
            (|plan| plan.lora.as_mut().unwrap().target_modules.push("head".into()), "target"),
        ];
        for (break_it, field) in breaks {
            let mut message = v1::Plan::from(plan());
            break_it(&mut message);
            let error = Plan::try_from(message).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn report_headers_are_bounded() {
        let header = ReportHeader {
            run: "run".parse().unwrap(),
            round: Round(1),
            num_examples: 2,
            num_steps: 3,
            payload_bytes: 100,
            payload_digest: Digest::of(b"p"),
            offset: 40,
        };
        let message = v1::ReportHeader::from(header.clone());
        assert_eq!(ReportHeader::check(&message, 100).unwrap(), header);
        let error = ReportHeader::check(&message, 99).unwrap_err().to_string();
        assert!(error.contains("payload_bytes"), "{error}");
        let huge = v1::ReportHeader { payload_bytes: u64::MAX, ..message };
        assert!(ReportHeader::check(&huge, usize::MAX - 1).is_err());
        let beyond = v1::ReportHeader { offset: 101, ..v1::ReportHeader::from(header) };
        let error = ReportHeader::check(&beyond, 100).unwrap_err().to_string();
        assert!(error.contains("offset is 101, beyond the payload's 100 bytes"), "{error}");
    }

    #[test]
    fn a_digest_may_be_left_out_and_not_cut_short() {
        for payload_digest in [None, Some(Digest::of(b"p"))] {
            let request =
                StandingRequest { run: "run".parse().unwrap(), round: Round(2), payload_digest };
            let message = v1::StandingRequest::from(request.clone());
            assert_eq!(StandingRequest::try_from(message).unwrap(), request);
        }
        let short = v1::FetchAdapterRequest { adapter_digest: vec![1; 31], ..Default::default() };
        let error = FetchRequest::try_from(short).unwrap_err().to_string();
        assert!(error.contains("adapter_digest"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_checked_plan_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let message = v1::Plan::decode(bytes.as_slice()).ok();
            let plan = message.and_then(|message| Plan::try_from(message).ok());
            prop_assert!(plan.is_none_or(|plan| plan.lora.validate().is_ok()));
        }
    }
}
