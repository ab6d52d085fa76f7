//! The targets. To add one: a file with a constant `TARGET`, its `mod`, and its place in [`ALL`].

mod certificate;
mod checkpoint;
mod chunks;
mod client_config;
mod ledger;
mod messages;
mod model_config;
mod model_fixture;
mod payload;
mod peft;
mod private_data;
mod server_config;
mod tokenizer;

/// A decoder of outside bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus` and `regressions`.
    pub name: &'static str,
    /// Gives the decoder an input; whether it was accepted. Panics where a promise is broken.
    pub run: fn(&[u8]) -> bool,
    /// Most bytes that may be allocated at any one time for this input.
    pub limit: fn(&[u8]) -> usize,
    /// Inputs to begin with, by name; `make-corpus` writes them down.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Share of the inputs of a run: less for slow decoders.
    pub share: u32,
    /// Longest input that is tried, in bytes.
    pub longest: usize,
}

/// Every target.
pub const ALL: &[Target] = &[
    payload::TARGET,
    messages::TARGET,
    chunks::TARGET,
    server_config::TARGET,
    client_config::TARGET,
    certificate::TARGET,
    peft::TARGET,
    model_config::TARGET,
    checkpoint::TARGET,
    private_data::TARGET,
    tokenizer::TARGET,
    ledger::TARGET,
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}

/// The first byte, which chooses among the decoders or settings of a target, and the rest.
fn choice(data: &[u8], of: usize) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first) % of, rest))
}
