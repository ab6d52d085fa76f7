//! Several jobs of training at once, each on threads of its own: small models leave threads that share a
//! step waiting for one another.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use floret_device::{Control, Progress};

use crate::threads::Threads;

/// What a job tells of a step, and hears whether to go on.
pub(crate) type Told<'a> = &'a mut dyn FnMut(Progress) -> Control;

enum Message<R> {
    Step(Progress),
    Done(usize, R),
}

/// Does the jobs of indices below `count`, each worker one after another: what each gave, in order.
/// `progress` hears of all steps on the caller's thread; once it cancels, every next step is told so.
pub(crate) fn side_by_side<R: Send>(
    workers: &[Threads],
    count: usize,
    job: &(impl Fn(&Threads, usize, Told<'_>) -> R + Sync),
    progress: Told<'_>,
) -> Vec<R> {
    let (next, cancelled) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let mut results: Vec<Option<R>> = std::iter::repeat_with(|| None).take(count).collect();
    thread::scope(|scope| {
        let (tell, messages) = mpsc::channel();
        for worker in workers {
            let tell = tell.clone();
            scope.spawn(move || {
                let indices = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for index in indices.take_while(|index| *index < count) {
                    let result = job(worker, index, &mut |step| {
                        let heard = tell.send(Message::Step(step)).is_ok();
                        match heard && !cancelled.load(Ordering::Relaxed) {
                            true => Control::Continue,
                            false => Control::Cancel,
                        }
                    });
                    if tell.send(Message::Done(index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for message in messages {
            match message {
                Message::Step(step) => {
                    if progress(step) == Control::Cancel {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Message::Done(index, result) => results[index] = Some(result),
            }
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(count: usize) -> Vec<Threads> {
        (0..count).map(|_| Threads::new(1).unwrap()).collect()
    }

    fn step(task: usize, step: u32) -> Progress {
        Progress { task, step, steps: 2, loss: 0.0 }
    }

    #[test]
    fn every_job_is_done_once_and_results_are_in_order() {
        for count in [0, 1, 2, 17] {
            let mut seen = Vec::new();
            let job = |_: &Threads, index: usize, told: Told<'_>| {
                told(step(index, 1));
                told(step(index, 2));
                index * index
            };
            let results = side_by_side(&workers(3), count, &job, &mut |step| {
                seen.push((step.task, step.step));
                Control::Continue
            });
            assert_eq!(results, (0..count).map(|index| index * index).collect::<Vec<_>>());
            seen.sort_unstable();
            assert_eq!(seen, (0..count).flat_map(|i| [(i, 1), (i, 2)]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn whoever_steps_after_a_cancellation_is_told() {
        let job = |_: &Threads, index: usize, told: Told<'_>| {
            (1u32..).find(|number| told(step(index, *number)) == Control::Cancel)
        };
        let results = side_by_side(&workers(2), 5, &job, &mut |_| Control::Cancel);
        assert!(results.len() == 5 && results.iter().all(Option::is_some));
    }
}
