//! The transformer behind the seam that `floret-device` trains through.

use std::collections::BTreeMap;
use std::sync::Arc;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Plan};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};

use crate::data::LocalData;
use crate::device::cpu;
use crate::memory::{self, StepPlan, Workload};
use crate::side_by_side::{Told, side_by_side};
use crate::threads::{NoThreads, Threads};
use crate::train::{Step, Trained, Training};
use crate::transformer::Transformer;

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
    /// It changes no bit of the result.
    pub sequential: bool,
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
        let batch_size = plan.training.batch_size as usize;
        let Some(budget) = self.options.memory_budget else {
            let recompute = self.options.recompute;
            return Ok(StepPlan { recompute, ..StepPlan::fastest(batch_size) });
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
        }
    }

    /// How many of `tasks` train side by side: one for each thread, if memory suffices.
    fn width(&self, tasks: &[TrainingTask]) -> usize {
        let budget = self.options.memory_budget.or_else(memory::available).unwrap_or(u64::MAX);
        let fits = |clients: &usize| {
            tasks.iter().all(|TrainingTask { plan, .. }| {
                let recompute = self.options.recompute;
                let fastest = StepPlan::fastest(plan.training.batch_size as usize);
                let way = StepPlan { recompute, ..fastest };
                self.workload(plan, *clients).estimate(&way) <= budget
            })
        };
        let most = if self.options.sequential { 1 } else { self.threads.count().min(tasks.len()) };
        (2..=most).rev().find(fits).unwrap_or(1)
    }

    fn train_on(
        &self,
        threads: &Threads,
        task: &TrainingTask,
        told: Told<'_>,
    ) -> Result<TrainingOutcome, TrainError> {
        let TrainingTask { client, plan, adapter, scope, correction } = task;
        let data = self.clients.get(client).ok_or(TrainError::NoData)?;
        let config = &plan.training;
        config.validate().map_err(|error| TrainError::Unsupported(error.to_string()))?;
        let sequences = data.train(config.sequence_length as usize);
        let shuffle = plan.seed.derive(Purpose::Shuffle, plan.round, Some(client));
        let start = (&plan.lora, adapter);
        let training = Training::new(&self.model, start, &sequences, config, &shuffle)?;
        let mut training = training.with_plan(self.step_plan(plan)?).with_scope(scope);
        if let Some(correction) = correction {
            training = training.corrected_by(correction, config.steps(sequences.len()));
        }
        let steps = config.steps(sequences.len());
        for _ in 0..steps {
            let Step { number: step, loss } = threads.run(|| training.step())?;
            if told(Progress { task: 0, step, steps, loss }) == Control::Cancel {
                return Err(TrainError::Cancelled);
            }
        }
        let Trained { values, tokens, last_loss } = training.finish();
        let num_examples = u32::try_from(data.num_examples()).unwrap_or(u32::MAX);
        Ok(TrainingOutcome { values, num_examples, num_steps: steps, tokens, last_loss })
    }
}

impl Trainer for LocalTrainer {
    fn train(
        &mut self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        self.train_on(&self.threads, task, progress)
    }

    fn train_all(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Vec<Result<TrainingOutcome, TrainError>> {
        let width = self.width(tasks);
        if width == 1 {
            let train = |(index, task): (usize, &TrainingTask)| {
                self.train_on(&self.threads, task, &mut |step| {
                    progress(Progress { task: index, ..step })
                })
            };
            return tasks.iter().enumerate().map(train).collect();
        }
        if self.workers.len() != width {
            let each = self.threads.count() / width;
            match (0..width).map(|_| Threads::new(each)).collect() {
                Ok(workers) => self.workers = workers,
                Err(error) => {
                    let error: NoThreads = error;
                    return vec![Err(TrainError::Unsupported(error.to_string())); tasks.len()];
                }
            }
        }
        let job = |threads: &Threads, index: usize, told: Told<'_>| {
            self.train_on(threads, &tasks[index], told)
        };
        side_by_side(&self.workers, tasks.len(), &job, progress)
    }

    fn steps(&self, task: &TrainingTask) -> u32 {
        let config = &task.plan.training;
        match self.clients.get(&task.client) {
            Some(data) if config.max_epochs > 0 => {
                config.steps(data.train(config.sequence_length as usize).len())
            }
            Some(_) | None => config.max_steps,
        }
    }

    /// One for each thread, so that no more is at work, and lost with the process, than can be done at once.
    fn at_once(&self) -> usize {
        if self.options.sequential { 1 } else { self.threads.count() }
    }
}

#[cfg(test)]
mod tests;
