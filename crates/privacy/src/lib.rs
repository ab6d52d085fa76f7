//! Privacy mechanisms on flat vectors.
//!
//! # Layout
//!
//! - [`clip`]: bounds what one client can change

pub mod clip;
