//! The transformer behind the seam that `floret-device` trains through.

use std::collections::BTreeMap;
use std::sync::Arc;

use floret_core::ClientId;
use floret_core::seed::Purpose;
use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};

use crate::data::LocalData;
use crate::threads::{NoThreads, Threads};
use crate::train::{Step, Trained, Training};
use crate::transformer::Transformer;

/// Trains any number of clients on one shared base model.
#[derive(Debug)]
pub struct LocalTrainer {
    model: Arc<Transformer>,
    threads: Threads,
    clients: BTreeMap<ClientId, LocalData>,
}

impl LocalTrainer {
    /// A trainer without clients that computes on `threads` threads; 0 means one for each core.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn new(model: Arc<Transformer>, threads: usize) -> Result<Self, NoThreads> {
        Ok(Self { model, threads: Threads::new(threads)?, clients: BTreeMap::new() })
    }

    /// Gives `client` its data, in place of any that it had.
    pub fn insert(&mut self, client: ClientId, data: LocalData) {
        self.clients.insert(client, data);
    }

    /// The data of `client`.
    #[must_use]
    pub fn data(&self, client: &ClientId) -> Option<&LocalData> {
        self.clients.get(client)
    }

    fn train_one(
        &self,
        task: &TrainingTask,
        progress: &mut dyn FnMut(Step) -> Control,
    ) -> Result<TrainingOutcome, TrainError> {
        let TrainingTask { client, plan, adapter } = task;
        let data = self.clients.get(client).ok_or(TrainError::NoData)?;
        let config = &plan.training;
        config.validate().map_err(|error| TrainError::Unsupported(error.to_string()))?;
        let sequences = data.train(config.sequence_length as usize);
        let shuffle = plan.seed.derive(Purpose::Shuffle, plan.round, Some(client));
        let start = (&plan.lora, adapter);
        let mut training = Training::new(&self.model, start, &sequences, config, &shuffle)?;
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
