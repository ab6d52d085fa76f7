//! The one long-lived thread that trains: a GPU backend keeps its memory by thread, and the async
//! runtime must not wait for a training step.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use floret_device::{Control, Progress, TrainError, Trainer, TrainingOutcome, TrainingTask};
use tokio::sync::oneshot;

type Watch = Box<dyn FnMut(Progress) + Send>;

struct Job {
    task: Arc<TrainingTask>,
    watch: Watch,
    cancelled: Arc<AtomicBool>,
    done: oneshot::Sender<Result<TrainingOutcome, TrainError>>,
}

/// The training thread panicked: nothing can be trained any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the training thread has stopped: restart the program, and report this as a bug")]
pub struct ThreadGone;

/// A thread that owns a trainer. Clones share it: several devices in one process train by turns.
#[derive(Clone)]
pub struct TrainingThread {
    jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for TrainingThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrainingThread")
    }
}

impl TrainingThread {
    /// Starts the thread; it ends when the last clone is dropped.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn spawn(mut trainer: impl Trainer + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            for mut job in queue {
                let result = run(&mut trainer, &mut job);
                // The asker may have gone meanwhile.
                let _ = job.done.send(result);
            }
        };
        std::thread::Builder::new().name("floret-training".to_owned()).spawn(work)?;
        Ok(Self { jobs })
    }

    /// Trains `task`, telling each step to `watch`. Dropping the future cancels the training.
    ///
    /// # Errors
    /// The thread is gone; within, what the trainer says.
    pub async fn train(
        &self,
        task: Arc<TrainingTask>,
        watch: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Result<TrainingOutcome, TrainError>, ThreadGone> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (done, result) = oneshot::channel();
        let job = Job { task, watch: Box::new(watch), cancelled: Arc::clone(&cancelled), done };
        let _cancel_on_drop = CancelOnDrop(cancelled);
        self.jobs.send(job).map_err(|_| ThreadGone)?;
        result.await.map_err(|_| ThreadGone)
    }
}

fn run(trainer: &mut impl Trainer, job: &mut Job) -> Result<TrainingOutcome, TrainError> {
    let Job { task, watch, cancelled, .. } = job;
    if cancelled.load(Ordering::Relaxed) {
        return Err(TrainError::Cancelled);
    }
    let mut progress = |progress: Progress| {
        if cancelled.load(Ordering::Relaxed) {
            return Control::Cancel;
        }
        watch(progress);
        Control::Continue
    };
    trainer.train(task, &mut progress)
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
