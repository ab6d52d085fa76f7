//! Many inputs on several threads, watched for hangs.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::check::{Failure, Outcome, check};
use crate::mutate::Inputs;
use crate::outlive::Trace;
use crate::{Target, corpus, report};

/// Inputs that a thread takes at once.
const BATCH: u64 = 512;
/// How long one input may take.
const HANG: Duration = Duration::from_secs(5);
/// How often the threads are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What an idle thread says instead of the number of an input.
const IDLE: u64 = u64::MAX;

/// What to run.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The targets.
    pub targets: Vec<&'static Target>,
    /// Seed of all inputs.
    pub seed: u64,
    /// Number of the first input of each target.
    pub from: u64,
    /// Inputs over all targets.
    pub inputs: u64,
    /// Time after which no more inputs are taken.
    pub time: Duration,
    /// Threads.
    pub threads: usize,
    /// Folder where each thread notes the inputs that it takes, in case the process dies.
    pub trace: Option<PathBuf>,
}

/// An input that failed.
#[derive(Debug, Clone)]
pub struct Found {
    /// The target.
    pub target: &'static Target,
    /// Number of the input.
    pub number: u64,
    /// The input.
    pub input: Vec<u8>,
    /// What it did.
    pub failure: Failure,
}

/// What the inputs of one target did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// How many there were.
    pub inputs: u64,
    /// How many were accepted.
    pub accepted: u64,
    /// Most bytes that one allocated.
    pub peak: u64,
    /// Most that one came near its declared limit, in percent.
    pub of_limit: u64,
    /// The longest that one took.
    pub slowest: Duration,
    /// All of their time.
    pub time: Duration,
}

/// The end of a campaign.
#[derive(Debug)]
pub struct Result {
    /// One for each target.
    pub tallies: Vec<Tally>,
    /// The first failure, if any.
    pub found: Option<Found>,
}

struct Schedule {
    /// Inputs given out so far, for each target.
    given: Vec<u64>,
    tallies: Vec<Tally>,
    found: Option<Found>,
}

/// Where a thread is.
#[derive(Debug)]
struct Place {
    target: AtomicU64,
    number: AtomicU64,
}

struct Shared<'a> {
    campaign: &'a Campaign,
    inputs: Vec<Inputs>,
    schedule: Mutex<Schedule>,
    places: Vec<Place>,
    stop: AtomicBool,
    end: Option<Instant>,
}

impl Campaign {
    /// Gives inputs to the targets, to each by its share, until there were enough or one failed. An
    /// input without end is reported, and ends the program.
    ///
    /// # Errors
    /// A corpus that cannot be read.
    pub fn run(&self) -> io::Result<Result> {
        let inputs = self.targets.iter().map(|target| {
            let seeds = corpus::read_dir(&corpus::seeds_dir(target))?;
            Ok(Inputs::new(target, seeds, self.seed))
        });
        let count = self.targets.len();
        let place = || Place { target: AtomicU64::new(0), number: AtomicU64::new(IDLE) };
        let shared = Shared {
            campaign: self,
            inputs: inputs.collect::<io::Result<_>>()?,
            schedule: Mutex::new(Schedule {
                given: vec![0; count],
                tallies: vec![Tally::default(); count],
                found: None,
            }),
            places: (0..self.threads).map(|_| place()).collect(),
            stop: AtomicBool::new(false),
            end: Instant::now().checked_add(self.time),
        };
        thread::scope(|scope| {
            let shared = &shared;
            let start = |worker| scope.spawn(move || shared.work(worker));
            let workers: Vec<_> = (0..self.threads).map(start).collect();
            if let Some(found) = shared.watch(|| workers.iter().all(|one| one.is_finished())) {
                // The thread that hangs cannot be ended, so the program is.
                report::failure(&found, self.seed);
                std::process::exit(1);
            }
        });
        let schedule = shared.schedule.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Result { tallies: schedule.tallies, found: schedule.found })
    }
}

impl Shared<'_> {
    /// Checks batches of inputs until there are no more.
    fn work(&self, worker: usize) {
        let mut trace = self.campaign.trace.as_deref().map(|dir| Trace::new(dir, worker));
        while let Some((at, numbers)) = self.next_batch() {
            let target = self.campaign.targets[at];
            if let Some(trace) = &mut trace {
                trace.note(target, &numbers);
            }
            let place = &self.places[worker];
            place.target.store(at as u64, Ordering::Relaxed);
            let mut tally = Tally::default();
            for number in numbers {
                place.number.store(number, Ordering::Relaxed);
                let input = self.inputs[at].get(number);
                let begin = Instant::now();
                let outcome = check(target, &input);
                tally.note(target, &input, begin.elapsed(), outcome.as_ref().ok());
                if let Err(failure) = outcome {
                    self.fail(Found { target, number, input, failure });
                }
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            place.number.store(IDLE, Ordering::Relaxed);
            self.locked(|schedule| schedule.tallies[at].add(&tally));
        }
    }

    /// The next inputs of the target that is furthest behind its share.
    fn next_batch(&self) -> Option<(usize, std::ops::Range<u64>)> {
        let over = self.end.is_some_and(|end| Instant::now() >= end);
        if over || self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.locked(|schedule| {
            let left = self.campaign.inputs.saturating_sub(schedule.given.iter().sum());
            let targets = &self.campaign.targets;
            let behind =
                |at: &usize| schedule.given[*at] as f64 / f64::from(targets[*at].share.max(1));
            let at = (0..targets.len()).min_by(|x, y| behind(x).total_cmp(&behind(y)))?;
            let count = left.min(BATCH);
            let first = self.campaign.from + schedule.given[at];
            schedule.given[at] += count;
            (count > 0).then_some((at, first..first + count))
        })
    }

    fn fail(&self, found: Found) {
        self.stop.store(true, Ordering::Relaxed);
        self.locked(|schedule| _ = schedule.found.get_or_insert(found));
    }

    /// Looks at the threads until they are done, or one hangs.
    fn watch(&self, done: impl Fn() -> bool) -> Option<Found> {
        let mut seen = vec![(IDLE, Instant::now()); self.places.len()];
        while !done() {
            thread::sleep(LOOK.min(self.campaign.time));
            for (place, (last, since)) in self.places.iter().zip(&mut seen) {
                let number = place.number.load(Ordering::Relaxed);
                if number != *last {
                    (*last, *since) = (number, Instant::now());
                } else if number != IDLE && since.elapsed() > HANG {
                    let at = place.target.load(Ordering::Relaxed) as usize;
                    let (target, input) = (self.campaign.targets[at], self.inputs[at].get(number));
                    let failure = Failure::Hang(HANG.as_secs());
                    return Some(Found { target, number, input, failure });
                }
            }
        }
        None
    }

    fn locked<T>(&self, change: impl FnOnce(&mut Schedule) -> T) -> T {
        change(&mut self.schedule.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tally {
    fn note(&mut self, target: &Target, input: &[u8], took: Duration, outcome: Option<&Outcome>) {
        self.inputs += 1;
        self.slowest = self.slowest.max(took);
        self.time += took;
        if let Some(outcome) = outcome {
            self.accepted += u64::from(outcome.accepted);
            self.peak = self.peak.max(outcome.peak);
            let limit = (target.limit)(input).max(1) as u64;
            self.of_limit = self.of_limit.max(outcome.peak * 100 / limit);
        }
    }

    fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.accepted += other.accepted;
        self.peak = self.peak.max(other.peak);
        self.of_limit = self.of_limit.max(other.of_limit);
        self.slowest = self.slowest.max(other.slowest);
        self.time += other.time;
    }
}
