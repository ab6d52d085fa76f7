//! Floret's wire contract: the types generated from `proto/floret/v1/floret.proto`, and their
//! conversion to and from the core's types, which checks every field that comes in.
//!
//! # Layout
//!
//! - [`v1`]: generated messages, client and server
//! - [`convert`]: messages to and from core types
//! - [`gather`]: chunks become what was announced
//! - [`limits`]: sizes that both sides keep

pub mod convert;
pub mod gather;
pub mod limits;

/// The generated messages, client and server.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::use_self,
    clippy::doc_markdown,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("floret.v1");
}
