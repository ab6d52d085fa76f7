//! What the examples share.
//!
//! # Layout
//!
//! - [`federation`]: a server and its devices in one process, over loopback mutual TLS
//! - [`logs`]: where their logs go

pub mod federation;
pub mod logs;
