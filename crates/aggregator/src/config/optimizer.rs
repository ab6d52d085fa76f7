//! Ranges of a server optimizer's settings.

use super::{InvalidRun, setting};
use crate::server_optimizer::ServerOptimizer;

pub(super) fn validate(optimizer: ServerOptimizer) -> Result<(), InvalidRun> {
    let ServerOptimizer { learning_rate, momentum, adaptive } = optimizer;
    if !(learning_rate > 0.0 && learning_rate <= 100.0) {
        let name = "aggregation.server_optimizer.learning_rate";
        return setting(name, learning_rate, "above 0, up to 100");
    }
    if !(0.0..1.0).contains(&momentum) {
        let name = "aggregation.server_optimizer.momentum";
        return setting(name, momentum, "0 or more, below 1");
    }
    let Some(adaptive) = adaptive else { return Ok(()) };
    if let Some(beta2) = adaptive.beta2().filter(|beta2| !(0.0..1.0).contains(beta2)) {
        let name = "aggregation.server_optimizer.adaptive.beta2";
        return setting(name, beta2, "0 or more, below 1");
    }
    // Its square is where the second moment begins, which an f32 must hold.
    if !(1e-15..=1.0).contains(&adaptive.tau()) {
        let name = "aggregation.server_optimizer.adaptive.tau";
        return setting(name, adaptive.tau(), "1e-15 to 1");
    }
    Ok(())
}
