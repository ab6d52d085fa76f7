//! The researcher's program as a library: experiments can be read and run by other programs.
//!
//! # Layout
//!
//! - [`experiment`]: the file that describes one
//! - [`corpus`], [`people`]: texts, and who holds which
//! - [`mod@simulate`]: runs it in virtual time
//! - `compare`: runs several over several seeds, and reports on them
//! - `bench`, `load`, `pretrain`: the program's other commands; [`cli`]: their arguments
//! - `statistics`: what they say of many values

mod bench;
pub mod cli;
mod compare;
pub mod corpus;
pub mod experiment;
mod load;
pub mod people;
mod pretrain;
mod shapes;
pub mod simulate;
mod statistics;
mod usage;

pub use experiment::Experiment;
pub use simulate::{Computing, simulate};
