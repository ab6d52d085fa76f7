//! The transformer behind the seam that `floret-device` trains through.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use floret_core::plan::TrainingConfig;
use floret_core::seed::Purpose;
use floret_core::{ClientId, Plan};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};

use crate::data::LocalData;
use crate::device::cpu;
use crate::memory::{self, StepPlan, Workload};
use crate::side_by_side::{Told, side_by_side};
use crate::threads::{NoThreads, Threads};
use crate::tokens::Sequence;
use crate::train::{Step, Trained, Training, step_together};
use crate::transformer::Transformer;

/// Rows of a product that several clients fill, at most: more of them gain nothing
/// (docs/performance.md).
const ROWS: usize = 256;

/// How a trainer uses the machine. Apart from rounding, none of it changes what training gives.
#[derive(Debug, Clone, Default)]
pub struct TrainerOptions {
    /// Threads that compute; 0 for one for each core. They change no bit of the result.
    pub threads: usize,
    /// Bytes that the process may hold while it trains: the fastest way of doing a step is taken
    /// whose estimate, which is made for the CPU, fits. None takes the fastest of all.
    pub memory_budget: Option<u64>,
    /// Whether blocks keep only their input and are computed again in the backward pass, which
    /// takes less memory and more time. Not read with a memory budget, which decides it.
    pub recompute: bool,
    /// Whether clients train one after another, each on all threads. Otherwise as many train side by
    /// side as there are threads and memory for: with fewer threads for each, none waits for another.
    /// And where a batch has few rows, those of several clients go through the base model as one. It
    /// changes no bit of the result.
    pub sequential: bool,
    /// Clients whose batches go through the base model as one, at most, of those who train on the same
    /// threads; none for as many as are of use. It changes no bit of the result.
    pub stack: Option<usize>,
}

/// Trains any number of clients on one shared base model.
#[derive(Debug)]
pub struct LocalTrainer {
    model: Arc<Transformer>,
    options: TrainerOptions,
    threads: Threads,
    /// Threads of those who train side by side; none before there were several.
    workers: Vec<Threads>,
    clients: BTreeMap<ClientId, LocalData>,
}

impl LocalTrainer {
    /// A trainer without clients.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn new(model: Arc<Transformer>, options: TrainerOptions) -> Result<Self, NoThreads> {
        // A GPU has a stream and memory for each thread that speaks to it: one does.
        let on_cpu = model.device() == cpu();
        let threads = Threads::new(if on_cpu { options.threads } else { 1 })?;
        Ok(Self { model, options, threads, workers: Vec::new(), clients: BTreeMap::new() })
    }

    /// Gives `client` its data, in place of any that it had.
    pub fn insert(&mut self, client: ClientId, data: LocalData) {
        self.clients.insert(client, data);
    }

    /// Forgets the data of `client`.
    pub fn remove(&mut self, client: &ClientId) {
        self.clients.remove(client);
    }

    /// The data of `client`.
    #[must_use]
    pub fn data(&self, client: &ClientId) -> Option<&LocalData> {
        self.clients.get(client)
    }

    /// How to do each step of `plan`.
    fn step_plan(&self, plan: &Plan) -> Result<StepPlan, TrainError> {
        let Some(budget) = self.options.memory_budget else {
            return Ok(self.fastest(plan));
        };
        let workload = self.workload(plan, 1);
        workload.fit(budget).map_err(|error| TrainError::Unsupported(error.to_string()))
    }

    fn workload<'a>(&'a self, plan: &'a Plan, clients: usize) -> Workload<'a> {
        Workload {
            model: self.model.config(),
            precision: self.model.precision(),
            lora: &plan.lora,
            batch_size: plan.training.batch_size as usize,
            sequence_length: plan.training.sequence_length as usize,
            threads: self.threads.count(),
            clients,
            stack: 1,
        }
    }

    /// The way of doing each step of `plan` that memory sets no bound to.
    fn fastest(&self, plan: &Plan) -> StepPlan {
        let recompute = self.options.recompute && self.options.memory_budget.is_none();
        StepPlan { recompute, ..StepPlan::fastest(plan.training.batch_size as usize) }
    }

    /// Bytes that several clients may take.
    fn budget(&self) -> u64 {
        self.options.memory_budget.or_else(memory::available).unwrap_or(u64::MAX)
    }

    /// How many of `tasks` train side by side: one for each thread, if memory suffices.
    fn width(&self, tasks: &[TrainingTask]) -> usize {
        let budget = self.budget();
        let fits = |clients: &usize| {
            tasks.iter().all(|TrainingTask { plan, .. }| {
                self.workload(plan, *clients).estimate(&self.fastest(plan)) <= budget
            })
        };
        let most = if self.options.sequential { 1 } else { self.threads.count().min(tasks.len()) };
        (2..=most).rev().find(fits).unwrap_or(1)
    }

    /// How many clients with `plan` go through the base model as one, on each of `workers`: as many as
    /// fill the rows of a product, where that changes no bit and memory suffices.
    fn stack(&self, plan: &Plan, workers: usize) -> usize {
        if self.options.sequential {
            return 1;
        }
        let TrainingConfig { batch_size, sequence_length, .. } = plan.training;
        let rows = (batch_size as usize).saturating_mul(sequence_length as usize).max(1);
        let most = self.options.stack.unwrap_or(ROWS / rows);
        let (budget, way) = (self.budget(), self.fastest(plan));
        let is_of_use = |stack: &usize| {
            let rows = [rows, stack.saturating_mul(rows)];
            let workload = Workload { stack: *stack, ..self.workload(plan, workers) };
            self.model.same_bits(rows, rows) && workload.estimate(&way) <= budget
        };
        (2..=most).rev().find(is_of_use).unwrap_or(1)
    }

    /// Deals `tasks` out by their indices: those of a stack have plans alike, and `workers` have as much
    /// to do as one another.
    fn stacks(&self, tasks: &[TrainingTask], workers: usize) -> Vec<Vec<usize>> {
        let mut alike: Vec<Vec<usize>> = Vec::new();
        for (index, task) in tasks.iter().enumerate() {
            let fits = |indices: &&mut Vec<usize>| are_alike(&tasks[indices[0]].plan, &task.plan);
            match alike.iter_mut().find(fits) {
                Some(indices) => indices.push(index),
                None => alike.push(vec![index]),
            }
        }
        let dealt = alike.iter().flat_map(|indices| {
            let most = self.stack(&tasks[indices[0]].plan, workers);
            let stacks = indices.len().div_ceil(most * workers) * workers;
            indices.chunks(indices.len().div_ceil(stacks))
        });
        dealt.map(<[usize]>::to_vec).collect()
    }

    /// The sequences that `task` trains on.
    fn sequences(&self, task: &TrainingTask) -> Result<Vec<Sequence>, TrainError> {
        let data = self.clients.get(&task.client).ok_or(TrainError::NoData)?;
        let config = &task.plan.training;
        config.validate().map_err(|error| TrainError::Unsupported(error.to_string()))?;
        Ok(data.train(config.sequence_length as usize))
    }

    /// The training of `task` on `sequences`.
    fn training<'a>(
        &'a self,
        task: &'a TrainingTask,
        sequences: &'a [Sequence],
    ) -> Result<Training<'a>, TrainError> {
        let TrainingTask { client, plan, adapter, scope, correction } = task;
        let shuffle = plan.seed.derive(Purpose::Shuffle, plan.round, Some(client));
        let start = (&plan.lora, adapter);
        let training = Training::new(&self.model, start, sequences, &plan.training, &shuffle)?;
        let training = training.with_plan(self.step_plan(plan)?).with_scope(scope);
        Ok(match correction {
            Some(correction) => {
                training.corrected_by(correction, plan.training.steps(sequences.len()))
            }
            None => training,
        })
    }

    /// Trains those of `tasks` whose indices are `members`, which are alike, together.
    fn train_stack(
        &self,
        threads: &Threads,
        tasks: &[TrainingTask],
        members: &[usize],
        told: Told<'_>,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let task = |place: usize| &tasks[members[place]];
        let sequences: Vec<_> =
            (0..members.len()).map(|place| self.sequences(task(place))).collect();
        let mut trainings: Vec<Result<Training<'_>, TrainError>> = sequences
            .iter()
            .enumerate()
            .map(|(place, sequences)| {
                self.training(task(place), sequences.as_ref().map_err(Clone::clone)?)
            })
            .collect();
        let steps_of: Vec<u32> = sequences
            .iter()
            .enumerate()
            .map(|(place, of)| task(place).plan.training.steps(of.as_ref().map_or(0, Vec::len)))
            .collect();
        loop {
            let (places, mut unfinished): (Vec<usize>, Vec<&mut Training<'_>>) = trainings
                .iter_mut()
                .enumerate()
                .filter_map(|(place, training)| Some((place, training.as_mut().ok()?)))
                .filter(|(place, training)| training.steps() < steps_of[*place])
                .unzip();
            if places.is_empty() {
                break;
            }
            let done = threads.run(|| step_together(&mut unfinished));
            for (place, step) in places.into_iter().zip(done) {
                let (index, steps) = (members[place], steps_of[place]);
                let told = step.map(|Step { number: step, loss }| {
                    told(Progress { task: index, step, steps, loss })
                });
                match told {
                    Ok(Control::Continue) => {}
                    Ok(Control::Cancel) => trainings[place] = Err(TrainError::Cancelled),
                    Err(error) => trainings[place] = Err(error),
                }
            }
        }
        let outcome = |(place, training): (usize, Result<Training<'_>, TrainError>)| {
            let Trained { values, tokens, last_loss } = training?.finish();
            let examples = self.clients.get(&task(place).client).map_or(0, LocalData::num_examples);
            let num_examples = u32::try_from(examples).unwrap_or(u32::MAX);
            let num_steps = steps_of[place];
            Ok(TrainingOutcome { values, num_examples, num_steps, tokens, last_loss })
        };
        trainings.into_iter().enumerate().map(outcome).collect()
    }
}

/// Whether clients with these plans can go through the base model together.
fn are_alike(one: &Plan, other: &Plan) -> bool {
    let shape = |plan: &Plan| (plan.training.batch_size, plan.training.sequence_length);
    one.lora == other.lora && shape(one) == shape(other)
}

impl Trainer for LocalTrainer {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let mut outcomes = self.train_stack(&self.threads, slice::from_ref(task), &[0], progress);
        outcomes.pop().unwrap_or_else(|| unreachable!("each task has its result"))
    }

    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let width = self.width(tasks);
        if width > 1 && self.workers.len() != width {
            let each = self.threads.count() / width;
            match (0..width).map(|_| Threads::new(each)).collect() {
                Ok(workers) => self.workers = workers,
                Err(error) => {
                    let error: NoThreads = error;
                    return vec![Err(TrainError::Unsupported(error.to_string())); tasks.len()];
                }
            }
        }
        let workers = if width > 1 { &self.workers } else { slice::from_ref(&self.threads) };
        let stacks = self.stacks(tasks, width);
        let job = |threads: &Threads, index: usize, told: Told<'_>| {
            self.train_stack(threads, tasks, &stacks[index], told)
        };
        let done = side_by_side(workers, stacks.len(), &job, progress);
        let outcomes = stacks.into_iter().flatten().zip(done.into_iter().flatten());
        outcomes.collect::<BTreeMap<usize, _>>().into_values().collect()
    }

    fn steps(&self, task: &TrainingTask) -> u32 {
        let config = &task.plan.training;
        self.clients.get(&task.client).map_or(config.max_steps, |data| data.steps(config))
    }

    /// As many as can be done at once, so that no more is at work, and lost with the process.
    fn at_once(&self, task: &TrainingTask) -> usize {
        let width = if self.options.sequential { 1 } else { self.threads.count() };
        width * self.stack(&task.plan, width)
    }
}

#[cfg(test)]
mod tests;
