//! The aggregator program as a library: everything that the rules of `floret-aggregator` need to
//! meet devices over mutual TLS, and a disk.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use floret_server::{Config, Enrolment, Home, Server, ServerSection};
//! use tokio::net::TcpListener;
//!
//! let home = floret_server::init(Path::new("run"), Path::new("model"), &ServerSection::default())?;
//! let mut config = Config::load(&home)?;
//! config.run.rounds = 3;
//!
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let admin = TcpListener::bind("127.0.0.1:0").await?;
//! let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
//! let (name, out) = ("phone-1".parse()?, Path::new("phone-1"));
//! let enrolment = Enrolment { name: &name, out, server: &url, force: false };
//! floret_server::enroll(&home, &config, &enrolment)?;
//!
//! let server = Server::start(&home, &config, listener, admin).await?;
//! let end = server.wait_for_end().await?;
//! server.stop().await?;
//! floret_server::export(&home, &config, Path::new("adapter"), Some(end.version), false)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! - [`server`]: start, status, stop
//! - `accept`, [`tls`]: sockets become connections with an identity
//! - `service`: what comes in is checked, decided by the driver, answered
//! - [`driver`]: sole owner of the coordinator: decide, make durable, answer
//! - [`store`], [`files`]: what outlives a restart
//! - `admin`, `metrics`, `record_log`: what people see of it
//! - [`config`], [`home`], [`model_dir`]: what a server is given
//! - [`init`], [`enroll`], [`export`], [`verify`], [`authority`], [`ledger_key`]: the other commands

mod accept;
mod admin;
pub mod authority;
mod clock;
pub mod config;
pub mod driver;
mod enroll;
mod error;
mod export;
pub mod files;
pub mod home;
mod init;
pub mod ledger_key;
mod metrics;
pub mod model_dir;
mod patience;
mod record_log;
mod recovery;
pub mod server;
mod service;
pub mod store;
pub mod tls;
mod verify;

pub use config::{Config, ServerSection};
pub use driver::PublishedAdapter;
pub use enroll::{Enrolment, enroll, enroll_all};
pub use error::CommandError;
pub use export::{Exported, export};
pub use home::Home;
pub use init::init;
pub use recovery::{RecoveryError, recover};
pub use server::{Server, ServerError};
pub use store::{RunStore, SavedRun, StoreOptions};
pub use verify::{Verified, VerifyError, verify, verify_run};
