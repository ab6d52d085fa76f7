//! The transformer behind the seam that `floret-device` trains through.

use std::collections::BTreeMap;
use std::sync::Arc;

use floret_core::seed::Purpose;
use floret_core::{ClientId, Plan};
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};

use crate::data::LocalData;
use crate::device::cpu;
use crate::memory::{StepPlan, Workload};
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
}

/// Trains any number of clients on one shared base model.
#[derive(Debug)]
pub struct LocalTrainer {
    model: Arc<Transformer>,
    options: TrainerOptions,
    threads: Threads,
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
        Ok(Self { model, options, threads, clients: BTreeMap::new() })
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
        let workload = Workload {
            model: self.model.config(),
            precision: self.model.precision(),
            lora: &plan.lora,
            batch_size,
            sequence_length: plan.training.sequence_length as usize,
            threads: self.threads.count(),
        };
        workload.fit(budget).map_err(|error| TrainError::Unsupported(error.to_string()))
    }

    fn train_one(
        &self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Step) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let TrainingTask { client, plan, adapter, scope } = task;
        let data = self.clients.get(client).ok_or(TrainError::NoData)?;
        let config = &plan.training;
        config.validate().map_err(|error| TrainError::Unsupported(error.to_string()))?;
        let sequences = data.train(config.sequence_length as usize);
        let shuffle = plan.seed.derive(Purpose::Shuffle, plan.round, Some(client));
        let start = (&plan.lora, adapter);
        let training = Training::new(&self.model, start, &sequences, config, &shuffle)?;
        let mut training = training.with_plan(self.step_plan(plan)?).with_scope(scope);
        for _ in 0..config.max_steps {
            let step = self.threads.run(|| training.step())?;
            if progress(step) == Control::Cancel {
                return Err(TrainError::Cancelled);
            }
        }
        let Trained { values, tokens, last_loss } = training.finish();
        let num_examples = u32::try_from(data.num_examples()).unwrap_or(u32::MAX);
        Ok(TrainingOutcome { values, num_examples, tokens, last_loss })
    }
}

impl Trainer for LocalTrainer {
    fn train(
        &mut self,
        tasks: &[TrainingTask],
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Vec<TrainingOutcome>, TrainError> {
        let train = |(index, task): (usize, &TrainingTask)| {
            let steps = task.plan.training.max_steps;
            self.train_one(task, &mut |Step { number, loss }| {
                progress(Progress { task: index, step: number, steps, loss })
            })
        };
        tasks.iter().enumerate().map(train).collect()
    }
}

#[cfg(test)]
mod tests;
