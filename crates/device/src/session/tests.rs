use std::time::Duration;

use floret_core::base::BaseDigests;
use floret_core::layout::Factor;
use floret_core::lora::TargetModule;
use floret_core::payload::Compression;
use floret_core::plan::TrainingConfig;
use floret_core::scope::Freeze;
use floret_core::{LoraConfig, ModelConfig, Receipt, Seed, SigningKey};

use super::*;
use crate::control::Control as ControlVariate;
use crate::own::Personal;
use crate::pipeline::encode_update;
use crate::residual::Residual;

fn model() -> LocalModel {
    let config = ModelConfig::from_json(
        r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 256}"#,
    )
    .unwrap();
    let digest = Digest::of(b"files");
    LocalModel { config, digests: BaseDigests { base: digest, tokenizer: digest } }
}

fn adapter() -> Adapter {
    let lora = plan_settings();
    let layout = Layout::new(&model().config, &lora).unwrap();
    Adapter::init(Arc::new(layout), &Seed::from_number(1))
}

fn plan_settings() -> LoraConfig {
    LoraConfig { rank: 2, alpha: 2.0, use_rslora: false, target_modules: vec![TargetModule::VProj] }
}

fn plan() -> Plan {
    Plan {
        run: "run".parse().unwrap(),
        round: Round(3),
        version: Version(2),
        adapter_digest: adapter().digest(),
        layout_digest: adapter().layout().digest(),
        base: model().digests,
        lora: plan_settings(),
        folded_rank: 0,
        training: TrainingConfig::default(),
        compression: Compression::None,
        error_feedback: 0.0,
        clip_norm: 1.0,
        summands: 10,
        seed: Seed::from_number(9),
        report_within: Duration::from_secs(60),
    }
}

fn session() -> Session {
    Session::new("phone".parse().unwrap(), model(), Limits::default())
}

/// Feeds inputs and applies what comes of them.
fn advance(session: &mut Session, now: Time, input: Input) {
    for record in session.handle(now, input).unwrap() {
        session.apply(record);
    }
}

fn assign(session: &mut Session, plan: Plan) {
    advance(session, Time(0), Input::Assigned(Box::new(plan)));
}

fn outcome(shift: f32) -> TrainingOutcome {
    let values = adapter().values().iter().map(|value| value + shift).collect();
    TrainingOutcome { values, num_examples: 5, num_steps: 10, tokens: 100, last_loss: 1.0 }
}

fn signed_receipt(update: &ClientUpdate) -> SignedReceipt {
    let receipt = Receipt {
        round: update.round,
        payload_digest: update.payload.digest(),
        payload_bytes: update.payload.bytes().len() as u64,
        num_examples: update.num_examples,
        num_steps: update.num_steps,
        weight: update.num_examples,
        downloaded_bytes: 0,
    };
    let key = SigningKey::from_secret(&[1; 32]);
    let signature = receipt.sign(&update.run, session().client(), &key);
    SignedReceipt { receipt, signature }
}

#[test]
fn a_round_goes_from_check_in_to_receipt() {
    let mut session = session();
    let now = Time(10);
    assert!(matches!(session.next_action(now), Action::CheckIn));
    advance(&mut session, now, Input::ComeBack(Duration::from_millis(40)));
    assert!(matches!(session.next_action(now), Action::Wait(rest) if rest.as_millis() == 40));
    assert!(matches!(session.next_action(Time(50)), Action::CheckIn));
    assign(&mut session, plan());
    let fetch = session.next_action(now);
    assert!(matches!(fetch, Action::Fetch { version: Version(2), .. }));
    advance(&mut session, now, Input::Fetched(adapter()));
    assert!(matches!(session.next_action(now), Action::Train(_)));
    advance(&mut session, now, Input::Trained(Ok(outcome(0.5))));
    let Action::Report(update) = session.next_action(now) else { panic!("no report") };
    assert_eq!((update.round, update.num_examples), (Round(3), 5));
    let delta = update.payload.decode(adapter().layout()).unwrap();
    assert!(delta.iter().all(|change| (change - 0.5).abs() < 1e-6));
    // No deadline gives up what the server may have counted; only its answer does.
    assert!(matches!(session.next_action(Time(u64::MAX)), Action::Report(_)));
    let pending = Some(Pending { update: Arc::clone(&update), next: Own::default() });
    let mut restarted = self::session().with_kept(Kept { pending, own: Own::default() });
    assert!(matches!(restarted.next_action(now), Action::Report(again) if again == update));
    advance(&mut restarted, now, Input::ReportRefused("round 3 is over".into()));
    assert!(matches!(restarted.next_action(now), Action::CheckIn));
    advance(&mut session, now, Input::Acknowledged(signed_receipt(&update)));
    assert!(matches!(session.next_action(now), Action::CheckIn));
    let end = RunEnd {
        completed: true,
        version: Version(3),
        adapter_digest: None,
        message: "done".into(),
    };
    advance(&mut session, now, Input::RunEnded(end.clone()));
    assert!(matches!(session.next_action(now), Action::Stop(stop) if stop == end));
}

#[test]
fn plans_that_do_not_fit_are_declined_with_the_reason() {
    let other = Digest::of(b"other");
    let training = TrainingConfig::default;
    let base = model().digests;
    let cases = [
        (Plan { base: BaseDigests { base: other, ..base }, ..plan() }, "base model"),
        (Plan { base: BaseDigests { tokenizer: other, ..base }, ..plan() }, "tokenizer"),
        (Plan { layout_digest: other, ..plan() }, "layout"),
        (Plan { lora: LoraConfig { rank: 65, ..plan_settings() }, ..plan() }, "rank"),
        (Plan { lora: LoraConfig { alpha: -1.0, ..plan_settings() }, ..plan() }, "alpha"),
        (Plan { training: TrainingConfig { max_steps: 2_000, ..training() }, ..plan() }, "steps"),
        (Plan { training: TrainingConfig { batch_size: 9_999, ..training() }, ..plan() }, "tokens"),
        (
            Plan { training: TrainingConfig { batch_size: 200, ..training() }, ..plan() },
            "in a micro-batch",
        ),
        (
            Plan { training: TrainingConfig { sequence_length: 512, ..training() }, ..plan() },
            "per sequence",
        ),
        (
            Plan { training: TrainingConfig { learning_rate: -1.0, ..training() }, ..plan() },
            "learning_rate",
        ),
    ];
    for (plan, word) in cases {
        let mut session = session();
        assign(&mut session, plan);
        let Action::Decline { round, reason } = session.next_action(Time(0)) else {
            panic!("not declined: {word}")
        };
        assert_eq!(round, Round(3));
        assert!(reason.contains(word), "{word}: {reason}");
        advance(&mut session, Time(0), Input::DeclineNoted);
        assert!(matches!(session.next_action(Time(0)), Action::CheckIn));
    }
}

#[test]
fn another_adapter_is_a_fault_and_changes_nothing() {
    let mut session = session();
    assign(&mut session, plan());
    let layout = Arc::clone(adapter().layout());
    let other = Adapter::init(layout, &Seed::from_number(2));
    let fault = session.handle(Time(0), Input::Fetched(other)).unwrap_err();
    assert!(matches!(fault, Fault::WrongAdapter { .. }));
    assert!(matches!(session.next_action(Time(0)), Action::Fetch { .. }));
    let fault = session.handle(Time(0), Input::DeclineNoted).unwrap_err();
    assert!(fault.to_string().contains("fetching"), "{fault}");
}

#[test]
fn an_adapter_that_is_gone_ends_the_round() {
    let mut session = session();
    assign(&mut session, plan());
    advance(&mut session, Time(0), Input::FetchRefused("version 2 is gone".into()));
    assert!(matches!(session.next_action(Time(0)), Action::CheckIn));
}

#[test]
fn failed_training_declines() {
    for (result, word) in [
        (Err(TrainError::Diverged { step: 4 }), "step 4"),
        (Err(TrainError::NoData), "no training example"),
        (Ok(outcome(f32::NAN)), "not finite"),
        (Ok(TrainingOutcome { values: vec![1.0], ..outcome(0.0) }), "1 values"),
        (Ok(TrainingOutcome { num_examples: 0, ..outcome(0.0) }), "no training example"),
    ] {
        let mut session = session();
        assign(&mut session, plan());
        advance(&mut session, Time(0), Input::Fetched(adapter()));
        advance(&mut session, Time(0), Input::Trained(result));
        let action = session.next_action(Time(0));
        assert!(matches!(&action, Action::Decline { reason, .. } if reason.contains(word)));
    }
}

#[test]
fn a_passed_deadline_asks_whether_the_work_still_counts() {
    let asks = |session: &Session, at| {
        matches!(session.next_action(at), Action::AskStanding { round: Round(3), .. })
    };
    for trains in [false, true] {
        let mut session = session();
        assert_eq!(session.deadline(), None);
        assign(&mut session, plan());
        if trains {
            advance(&mut session, Time(1), Input::Fetched(adapter()));
        }
        assert_eq!(session.deadline(), Some(Time(60_000)));
        assert!(!asks(&session, Time(59_999)) && asks(&session, Time(60_000)));
        // The server waits longer: the same work goes on.
        advance(&mut session, Time(61_000), Input::Awaited(Duration::from_secs(30)));
        assert!(!asks(&session, Time(90_999)) && asks(&session, Time(91_000)));
        let going_on = session.next_action(Time(70_000));
        assert_eq!(matches!(going_on, Action::Train(_)), trains);
        assert_eq!(matches!(going_on, Action::Fetch { .. }), !trains);
        // A deadline in this very moment does not make it ask without a pause.
        advance(&mut session, Time(91_000), Input::Awaited(Duration::ZERO));
        assert!(!asks(&session, Time(91_999)) && asks(&session, Time(92_000)));
        let records = session.handle(Time(92_000), Input::Over).unwrap();
        assert!(matches!(records[..], [Record::Settled { outcome: Outcome::Expired, .. }]));
        records.into_iter().for_each(|record| session.apply(record));
        assert!(matches!(session.next_action(Time(92_000)), Action::CheckIn));
    }
}

#[test]
fn training_that_ends_after_the_deadline_is_not_lost() {
    let mut session = session();
    assign(&mut session, plan());
    advance(&mut session, Time(0), Input::Fetched(adapter()));
    advance(&mut session, Time(70_000), Input::Trained(Ok(outcome(0.5))));
    assert!(matches!(session.next_action(Time(70_000)), Action::Report(_)));
}

/// A device of rank 1 in a run of rank 2 trains the first component, if the plan permits that, and a
/// frozen factor must stay as it is.
#[test]
fn what_trains_follows_from_the_plan_and_the_limits() {
    let limits = Limits { max_rank: 1, ..Limits::default() };
    let mut session = Session::new("phone".parse().unwrap(), model(), limits);
    assign(&mut session, plan());
    assert!(matches!(session.next_action(Time(0)), Action::Decline { .. }));
    advance(&mut session, Time(0), Input::DeclineNoted);
    let training =
        TrainingConfig { nested_ranks: true, freeze: Freeze::A, ..TrainingConfig::default() };
    assign(&mut session, Plan { training, ..plan() });
    advance(&mut session, Time(0), Input::Fetched(adapter()));
    let Action::Train(task) = session.next_action(Time(0)) else { panic!("no work") };
    assert_eq!(task.scope, Scope { frozen: Some(Factor::A), rank: 1 });
    let mut values = adapter().values().to_vec();
    let b = adapter().layout().tensors()[1].clone();
    // The first column of B [8, 2], then its last value.
    b.range().step_by(2).for_each(|place| values[place] += 0.5);
    let outcome = |values: &[f32]| {
        let values = values.to_vec();
        TrainingOutcome { values, num_examples: 5, num_steps: 10, tokens: 100, last_loss: 1.0 }
    };
    assert!(encode_update(&task, &outcome(&values), None).is_ok());
    values[b.range().end - 1] += 0.5;
    let error = encode_update(&task, &outcome(&values), None).unwrap_err().to_string();
    assert!(error.contains("leaves as they are"), "{error}");
}

/// A round's plan in which much is left out.
fn lossy(version: u64) -> Plan {
    let compression = "bits1/2".parse().unwrap();
    Plan { version: Version(version), compression, error_feedback: 0.5, ..plan() }
}

/// Trains to a change of `shift`, and gives what is to be kept.
fn train(session: &mut Session, plan: Plan, shift: f32) -> Pending {
    assign(session, plan);
    advance(session, Time(0), Input::Fetched(adapter()));
    let records = session.handle(Time(0), Input::Trained(Ok(outcome(shift)))).unwrap();
    let [Record::Encoded(pending)] = &records[..] else { panic!("{records:?}") };
    let pending = pending.clone();
    records.into_iter().for_each(|record| session.apply(record));
    pending
}

fn of_residual(residual: Residual) -> Own {
    Own { residual: Some(Arc::new(residual)), ..Own::default() }
}

fn left(pending: &Pending) -> &Residual {
    pending.next.residual.as_deref().unwrap()
}

fn decoded(pending: &Pending) -> Vec<f32> {
    pending.update.payload.decode(adapter().layout()).unwrap()
}

#[test]
fn what_an_update_leaves_out_is_added_to_the_next_once_it_counts() {
    let mut session = session();
    let first = train(&mut session, lossy(2), 0.5);
    for (sent, left) in decoded(&first).iter().zip(&left(&first).values) {
        assert!((sent + left - 0.5).abs() < 1e-6);
    }
    // The other half was not sent.
    assert!(decoded(&first).iter().filter(|value| **value == 0.0).count() >= 16);
    advance(&mut session, Time(0), Input::Acknowledged(signed_receipt(&first.update)));
    let second = train(&mut session, lossy(3), 0.25);
    assert_eq!(left(&second).turn, left(&first).turn.wrapping_add(1));
    let (sent, next) = (decoded(&second), &left(&second).values);
    for ((sent, next), before) in sent.iter().zip(next).zip(&left(&first).values) {
        assert!((sent + next - (0.25 + before)).abs() < 1e-6);
    }
    // Refused: the same again, from what was left before.
    advance(&mut session, Time(0), Input::ReportRefused("round 3 is over".into()));
    assert_eq!(train(&mut session, lossy(3), 0.25), second);
    // And from a store, after a crash.
    let kept = Kept { pending: None, own: first.next.clone() };
    assert_eq!(train(&mut session.restarted().with_kept(kept), lossy(3), 0.25), second);
    assert_ne!(train(&mut session.restarted(), lossy(3), 0.25), second);
}

#[test]
fn a_residual_decays_with_the_versions_that_its_device_sat_out() {
    let first = train(&mut session(), lossy(2), 0.5);
    // The version that the residual is of may be that of the plan: its round was abandoned.
    for (version, decay) in [(0, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (6, 0.125), (u64::MAX, 0.0)] {
        let kept = Kept { pending: None, own: first.next.clone() };
        let next = train(&mut session().with_kept(kept), lossy(version), 0.25);
        let (sent, after) = (decoded(&next), &left(&next).values);
        for ((sent, after), before) in sent.iter().zip(after).zip(&left(&first).values) {
            assert!((sent + after - (0.25 + decay * before)).abs() < 1e-6, "version {version}");
        }
    }
}

#[test]
fn residuals_of_other_runs_and_layouts_are_not_added_and_divergence_is_seen() {
    let first = train(&mut session(), lossy(2), 0.5);
    let alone = train(&mut session(), lossy(3), 0.25);
    for change in [
        (|of| of.run = "other".parse().unwrap()) as fn(&mut Residual),
        |of| of.layout = Digest::of(b"other"),
        |of| of.values.push(0.0),
    ] {
        let mut residual = left(&first).clone();
        change(&mut residual);
        let kept = Kept { pending: None, own: of_residual(residual) };
        assert_eq!(train(&mut session().with_kept(kept), lossy(3), 0.25), alone);
    }
    let huge =
        Residual { values: vec![f32::MAX; adapter().layout().len()], ..left(&first).clone() };
    let kept = Kept { pending: None, own: of_residual(huge) };
    let mut session = session().with_kept(kept);
    assign(&mut session, lossy(3));
    advance(&mut session, Time(0), Input::Fetched(adapter()));
    for shift in [f32::INFINITY, f32::NAN] {
        let records = session.handle(Time(0), Input::Trained(Ok(outcome(shift)))).unwrap();
        assert!(
            matches!(&records[..], [Record::Declined { reason, .. }] if reason.contains("diverged"))
        );
    }
    let records = session.handle(Time(0), Input::Trained(Ok(outcome(1e38)))).unwrap();
    let [Record::Encoded(pending)] = &records[..] else { panic!("{records:?}") };
    assert!(left(pending).values.iter().all(|value| value.is_finite()));
}

#[test]
fn a_plan_with_impossible_feedback_is_declined() {
    for error_feedback in [f32::NAN, -0.1, 1.1] {
        let mut session = session();
        assign(&mut session, Plan { error_feedback, ..plan() });
        let action = session.next_action(Time(0));
        assert!(matches!(&action, Action::Decline { reason, .. } if reason.contains("feedback")));
    }
}

/// FedSA: B trains and stays, goes on from where it was once its update counts, and leaves no trace of one that does not.
#[test]
fn a_personal_factor_stays_on_its_device() {
    let personal = |version| {
        let training = TrainingConfig { personal_b: true, ..TrainingConfig::default() };
        Plan { version: Version(version), training, ..plan() }
    };
    let b = |values: &[f32]| values[adapter().layout().tensors()[1].range()].to_vec();
    let start = |session: &mut Session, plan| {
        assign(session, plan);
        advance(session, Time(0), Input::Fetched(adapter()));
        let Action::Train(task) = session.next_action(Time(0)) else { panic!("no work") };
        assert_eq!(task.scope, Scope { frozen: None, rank: 2 });
        task.adapter.values().to_vec()
    };
    let mut session = session();
    let first = train(&mut session, personal(2), 0.5);
    let sent = decoded(&first);
    let [of_a, of_b] = [0, 1].map(|at| adapter().layout().tensors()[at].range());
    assert!(sent[of_a].iter().all(|value| (value - 0.5).abs() < 1e-6));
    assert!(sent[of_b].iter().all(|value| *value == 0.0));
    // Refused: as if nothing had been.
    let mut refused = self::session();
    let again = train(&mut refused, personal(2), 0.5);
    assert_eq!(again, first);
    advance(&mut refused, Time(0), Input::ReportRefused("round 3 is over".into()));
    assert_eq!(start(&mut refused, personal(3)), adapter().values());
    // Counted: A is the server's, B the device's, also after a crash.
    advance(&mut session, Time(0), Input::Acknowledged(signed_receipt(&first.update)));
    let mut crashed =
        session.restarted().with_kept(Kept { pending: None, own: first.next.clone() });
    for session in [&mut session, &mut crashed] {
        let from = start(session, personal(3));
        let trained: Vec<f32> = b(adapter().values()).iter().map(|value| value + 0.5).collect();
        assert_eq!(b(&from), trained);
        let [of_a, _] = [0, 1].map(|at| adapter().layout().tensors()[at].range());
        assert_eq!(from[of_a.clone()], adapter().values()[of_a]);
    }
    // Other runs, other layouts and damaged values are another device's business.
    let elsewhere = |change: fn(&mut Personal)| {
        let mut personal_b = (**first.next.personal.as_ref().unwrap()).clone();
        change(&mut personal_b);
        let own = Own { personal: Some(Arc::new(personal_b)), ..Own::default() };
        let mut session = self::session().with_kept(Kept { pending: None, own });
        assert_eq!(start(&mut session, personal(3)), adapter().values());
    };
    elsewhere(|of| of.run = "other".parse().unwrap());
    elsewhere(|of| of.layout = Digest::of(b"other"));
    elsewhere(|of| of.values.push(0.0));
    elsewhere(|of| of.values[0] = f32::NAN);
}

/// SCAFFOLD: the change of a device's last round is taken from what all changed since; a round that does not count is
/// forgotten, and what is of another run corrects nothing.
#[test]
fn a_device_corrects_itself_by_what_it_and_all_changed() {
    let scaffold = |version| {
        let training = TrainingConfig { scaffold: true, ..TrainingConfig::default() };
        Plan { version: Version(version), training, ..plan() }
    };
    // The adapter of the version that is begun with, moved by 0.25 in all values.
    let moved = Adapter::new(
        Arc::clone(adapter().layout()),
        adapter().values().iter().map(|value| value + 0.25).collect(),
    );
    let moved = moved.unwrap();
    let correction = |session: &mut Session, version| {
        assign(session, Plan { adapter_digest: moved.digest(), ..scaffold(version) });
        advance(session, Time(0), Input::Fetched(moved.clone()));
        let Action::Train(task) = session.next_action(Time(0)) else { panic!("no work") };
        task.correction.as_ref().map(|of| of.to_vec())
    };
    let mut first = session();
    let pending = train(&mut first, scaffold(2), 0.5);
    let of = |own: &Own| session().with_kept(Kept { pending: None, own: own.clone() });
    // The device changed 0.5, all changed 0.25, in one version or in two.
    for (version, want) in [(3, -0.25), (4, 0.125 - 0.5)] {
        let got = correction(&mut of(&pending.next), version).unwrap();
        assert!(got.iter().all(|value| (value - want).abs() < 1e-6), "{version}: {got:?}");
    }
    // Of the version itself, whose round was abandoned, nothing is known.
    assert_eq!(correction(&mut of(&pending.next), 2), None);
    advance(&mut first, Time(0), Input::ReportRefused("round 3 is over".into()));
    assert_eq!(correction(&mut first, 3), None);
    // What was corrected is not the device's own change.
    let mut second = of(&pending.next);
    assign(&mut second, Plan { adapter_digest: moved.digest(), ..scaffold(3) });
    advance(&mut second, Time(0), Input::Fetched(moved.clone()));
    let values = moved.values().iter().map(|value| value + 0.125).collect();
    let trained = TrainingOutcome { values, ..outcome(0.0) };
    let records = second.handle(Time(0), Input::Trained(Ok(trained))).unwrap();
    let [Record::Encoded(next)] = &records[..] else { panic!("{records:?}") };
    let change = &next.next.control.as_ref().unwrap().change;
    assert!(change.iter().all(|value| (value - 0.375).abs() < 1e-6), "{change:?}");
    let elsewhere = |change: fn(&mut ControlVariate)| {
        let mut control = (**pending.next.control.as_ref().unwrap()).clone();
        change(&mut control);
        let own = Own { control: Some(Arc::new(control)), ..Own::default() };
        assert_eq!(correction(&mut of(&own), 3), None);
    };
    elsewhere(|of| of.run = "other".parse().unwrap());
    elsewhere(|of| of.layout = Digest::of(b"other"));
    elsewhere(|of| of.start.push(0.0));
    elsewhere(|of| of.change[0] = f32::INFINITY);
}
