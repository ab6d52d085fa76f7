//! Combining the updates of a round that closes, by the rule of the settings or by one's own.

use super::Coordinator;
use crate::combine::residual::Residual;
use crate::combine::{Combine, Robust};
use crate::config::{Aggregation, InvalidRun, RunConfig};
use crate::phase::OpenRound;
use crate::store::UpdateSource;

impl Coordinator {
    /// Combines updates by a rule of one's own in the place of the weighted mean. Settings and ledger do
    /// not name it, so that nobody can compute its rounds again: it is for simulations and trials.
    ///
    /// # Errors
    /// Settings that name a rule themselves, or under which the median would be refused.
    pub fn with_rule(self, rule: Box<dyn Combine>) -> Result<Self, InvalidRun> {
        if let Some(named) = self.config.aggregation.rule() {
            return Err(InvalidRun::Setting {
                setting: "aggregation",
                value: format!("{named:?}"),
                accepted: "none with a rule of one's own".to_owned(),
            });
        }
        // It needs what the median needs.
        let combine = Some(Robust::Median {});
        let aggregation = Aggregation { combine, ..self.config.aggregation };
        let config = RunConfig { aggregation, ..self.config.clone() };
        config.validate()?;
        config.fits_memory(self.layout.bytes())?;
        Ok(Self { rule: Some(rule), ..self })
    }

    /// Whether all updates of a round are needed at once when it closes.
    #[must_use]
    pub fn needs_updates(&self) -> bool {
        self.rule.is_some() || self.config.aggregation.needs_updates()
    }

    /// The combined delta of a round, and its residual if that is asked for.
    pub(super) fn combine<S: UpdateSource>(
        &self,
        round: &dyn OpenRound,
        updates: &S,
    ) -> Result<(Vec<f32>, Option<Residual>), S::Error> {
        let aggregation = &self.config.aggregation;
        let (layout, before) = (&self.layout, self.state.adapter.values());
        if !self.needs_updates() {
            return Ok((round.mean(&self.config, layout, before), None));
        }
        let (mut deltas, mut weights) = (Vec::new(), Vec::new());
        for (client, receipt) in round.counted() {
            deltas.push(updates.update(client, receipt)?.delta().clone());
            weights.push(receipt.weight);
        }
        let named = aggregation.rule();
        let combined = match self.rule.as_deref().or(named.as_deref()) {
            Some(rule) => rule.combine(layout, before, &deltas, &weights),
            None => round.mean(&self.config, layout, before),
        };
        let measured = aggregation.measure_residual;
        let updates = (&deltas[..], &weights[..]);
        let residual = measured.then(|| Residual::of(layout, before, updates, &combined));
        Ok((combined, residual))
    }
}
