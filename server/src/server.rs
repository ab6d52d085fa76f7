//! A server from its start to its stop. The caller owns the listeners and says when to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use floret_aggregator::coordinator::Status;
use floret_aggregator::ledger::{Scribe, Settings};
use floret_aggregator::{Coordinator, InvalidRun, RunEnd};
use floret_core::{Layout, Payload, Round};
use floret_store::{Folder, Locked};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::accept::Acceptor;
use crate::admin::Admin;
use crate::authority::{self, AuthorityError};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Limits, seconds};
use crate::driver::{Driver, Keeper, Published, PublishedAdapter};
use crate::error::CommandError;
use crate::files::FileError;
use crate::home::Home;
use crate::ledger_key;
use crate::metrics::Metrics;
use crate::model_dir::{BaseModel, ModelError};
use crate::patience::Patience;
use crate::recovery::{RecoveryError, recover};
use crate::service::incoming::{Bounds, Incoming};
use crate::service::transfers::{Queue, Transfers};
use crate::service::turnstile::Turnstile;
use crate::service::{Attendance, Service};
use crate::store::{RunStore, StoreError, StoreOptions};
use crate::tls::{self, TlsError};

/// How often devices are counted that do not know yet that the run is over.
const TOLD_CHECK: Duration = Duration::from_millis(50);

/// Why a server cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Settings that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Settings of the run that cannot be used.
    #[error(transparent)]
    Run(#[from] InvalidRun),
    /// A base model that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A certificate that cannot be renewed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Certificates or keys that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The ledger's key cannot be used.
    #[error(transparent)]
    LedgerKey(#[from] CommandError),
    /// State that cannot be read or saved.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The saved run cannot go on.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The operating system refused a thread or a socket's address.
    #[error("the operating system refused what a server needs: {0}")]
    System(#[from] std::io::Error),
    /// The thread that owns the run is gone.
    #[error("the run's driver stopped unexpectedly: see the log, and report this as a bug")]
    DriverStopped,
}

/// A running server. Dropping it begins what [`Server::stop`] waits for.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    admin_address: SocketAddr,
    published: watch::Receiver<Published>,
    attendance: Arc<Attendance>,
    metrics: Arc<Metrics>,
    grace: Duration,
    tasks: TaskTracker,
    driver: JoinHandle<()>,
    shutdown: DropGuard,
}

impl Server {
    /// Reads the base model and the saved state, and serves on `listener`; `/metrics`, `/status` and
    /// `/healthz` answer on `admin`. The addresses in `config` are not looked at.
    ///
    /// # Errors
    /// Settings, base model, certificates or state that cannot be used.
    pub async fn start(
        home: &Home,
        config: &Config,
        listener: TcpListener,
        admin: TcpListener,
    ) -> Result<Self, ServerError> {
        let (address, admin_address) = (listener.local_addr()?, admin.local_addr()?);
        let (owned_home, owned_config) = (home.clone(), config.clone());
        let prepared = spawn_blocking(move || Prepared::read(&owned_home, &owned_config)).await;
        let Prepared { coordinator, store, clock, scribe, tls } =
            prepared.map_err(|_| ServerError::DriverStopped)??;
        let payload_max = Payload::max_bytes(coordinator.layout());
        let run_config = coordinator.config();
        let steps = Some(run_config.aggregation.download_compression);
        let steps = steps.filter(|compression| !compression.is_none());
        let compressions = [run_config.compression].into_iter().chain(steps).collect();
        let (metrics, limits) = (Arc::new(Metrics::new()), config.limits.clone());
        let run = coordinator.config().run.clone();
        let keeper = Keeper { coordinator, store, clock, state_dir: home.state() };
        let driver = Driver::start(keeper, Arc::clone(&metrics), limits.queue_length)?;
        let attendance = Arc::new(Attendance::default());
        let incoming = Arc::new(open_incoming(home, &limits)?);
        let request_timeout = seconds(limits.request_timeout_s);
        let (most, bytes) = (limits.max_concurrent_transfers, limits.max_transfer_bytes);
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let turnstile = Turnstile::new(
            driver.turns,
            limits.queue_length,
            request_timeout / 2,
            Arc::clone(&metrics),
            shutdown.clone(),
        );
        let service = Service {
            driver: driver.handle,
            published: driver.published.clone(),
            metrics: Arc::clone(&metrics),
            attendance: Arc::clone(&attendance),
            scribe,
            run,
            transfers: Arc::new(Transfers::new(most, bytes, request_timeout)),
            downloads: Arc::default(),
            incoming: Arc::clone(&incoming),
            turnstile,
            calls: Queue::default(),
            request_timeout,
            patience: Patience {
                stall: seconds(limits.stall_timeout_s),
                min_bytes_per_s: limits.min_bytes_per_s,
            },
            compressions,
            payload_max,
        };
        let pages = Admin {
            published: driver.published.clone(),
            metrics: Arc::clone(&metrics),
            started: Instant::now(),
        };
        tasks.spawn(pages.run(admin, shutdown.clone()));
        let rounds = follow_rounds(driver.published.clone(), incoming);
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(rounds));
        let acceptor = Acceptor {
            tls: TlsAcceptor::from(Arc::new(tls)),
            service: Acceptor::bounded(service),
            metrics: Arc::clone(&metrics),
            limits,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(acceptor.run(listener));
        log_start(&driver.published.borrow().status, address, admin_address);
        Ok(Self {
            address,
            admin_address,
            published: driver.published,
            attendance,
            metrics,
            grace: seconds(config.limits.shutdown_grace_s),
            tasks,
            driver: driver.thread,
            shutdown: shutdown.drop_guard(),
        })
    }

    /// Where devices connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin pages are.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Where the run stands; at most a second old.
    #[must_use]
    pub fn status(&self) -> Status {
        self.published.borrow().status.clone()
    }

    /// The current adapter.
    #[must_use]
    pub fn adapter(&self) -> Arc<PublishedAdapter> {
        Arc::clone(&self.published.borrow().adapter)
    }

    /// Waits until the run is over. The server goes on serving: devices must hear of it.
    ///
    /// # Errors
    /// The run cannot go on, since its state cannot be saved.
    pub async fn wait_for_end(&self) -> Result<RunEnd, ServerError> {
        let published = self.wait_for(|published| published.status.end.is_some()).await?;
        published.status.end.ok_or(ServerError::DriverStopped)
    }

    /// Waits until the run cannot go on; for ever if all is well.
    pub async fn wait_for_failure(&self) -> ServerError {
        match self.wait_for(|_| false).await {
            Err(error) => error,
            Ok(_) => ServerError::DriverStopped,
        }
    }

    async fn wait_for(&self, is: impl Fn(&Published) -> bool) -> Result<Published, ServerError> {
        let mut published = self.published.clone();
        let found = published.wait_for(|now| now.failure.is_some() || is(now)).await;
        let found = found.map_err(|_| ServerError::DriverStopped)?.clone();
        match found.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(found),
        }
    }

    /// Waits until every device that was here knows that the run is over and has left (each fetches
    /// the last adapter first), and no longer than `patience`. Returns whether all know.
    pub async fn wait_until_told(&self, patience: Duration) -> bool {
        let gone = async {
            while !self.attendance.all_told() || self.metrics.connections.get() > 0 {
                tokio::time::sleep(TOLD_CHECK).await;
            }
        };
        // A device that stays connected is no reason to say that it was not told.
        let _ = timeout(patience, gone).await;
        self.attendance.all_told()
    }

    /// Stops accepting, lets calls in flight finish for `limits.shutdown_grace_s`, and closes the
    /// state directory.
    ///
    /// # Errors
    /// The state could not be saved at some time before.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.shutdown.disarm().cancel();
        self.tasks.close();
        // The admin pages have no deadline of their own.
        let _ = timeout(self.grace + Duration::from_secs(1), self.tasks.wait()).await;
        // Gone with the last connection; it holds the lock of the state directory.
        let driver = self.driver;
        let joined = spawn_blocking(move || driver.join()).await;
        info!("stopped");
        match (joined, &self.published.borrow().failure) {
            (_, Some(failure)) => Err(Arc::clone(failure).into()),
            (Ok(Ok(())), None) => Ok(()),
            _ => Err(ServerError::DriverStopped),
        }
    }
}

/// What is read from disk before a server starts.
struct Prepared {
    coordinator: Coordinator,
    store: RunStore,
    clock: Clock,
    scribe: Arc<Scribe>,
    tls: rustls::ServerConfig,
}

impl Prepared {
    fn read(home: &Home, config: &Config) -> Result<Self, ServerError> {
        config.validate()?;
        let base = BaseModel::read(&config.model_dir(home))?;
        let layout = Layout::new(&base.config, &config.lora).map_err(InvalidRun::from)?;
        let (run, choice) = config.run_config(home, base.digests, layout.len())?;
        run.validate()?;
        if let Some(choice) = choice {
            info!("run.compression is {choice}");
        }
        let layout = Arc::new(layout);
        authority::renew_server(home, &config.server.hosts)?;
        let tls = tls::server_config(home)?;
        let scribe = Arc::new(Scribe::new(ledger_key::read(home)?));
        let options = StoreOptions {
            settings: Settings::of(&run, layout.digest()),
            layout: Arc::clone(&layout),
            keep_versions: config.limits.keep_versions,
            retain_updates_rounds: config.run.retain_updates_rounds,
        };
        let folder = Folder::hold(&home.state()).map_err(|error| match error {
            Locked::ByAnother => Arc::new(StoreError::Locked(home.state())),
            Locked::System(error) => Arc::new(FileError::new("lock", &home.state(), error).into()),
        })?;
        let clock = Clock::start();
        let store = RunStore::open(Arc::new(folder), options, Arc::clone(&scribe));
        let store = store.map_err(Arc::new)?;
        let (coordinator, store) = recover(run, layout, store, clock.now())?;
        if let Some(saved) = store.saved() {
            saved.publish(&home.state()).map_err(Arc::new)?;
        }
        Ok(Self { coordinator, store, clock, scribe, tls })
    }
}

fn open_incoming(home: &Home, limits: &Limits) -> Result<Incoming, ServerError> {
    let bounds = Bounds { uploads: limits.max_partial_uploads, bytes: limits.max_partial_bytes };
    Ok(Incoming::open(home.incoming(), bounds)?)
}

/// Tells `incoming` which round is open, until the driver stops.
async fn follow_rounds(mut published: watch::Receiver<Published>, incoming: Arc<Incoming>) {
    loop {
        let open = {
            let status = &published.borrow_and_update().status;
            status.cohort.map(|_| Round(status.round))
        };
        incoming.round_is(open);
        if published.changed().await.is_err() {
            return;
        }
    }
}

fn log_start(status: &Status, address: SocketAddr, admin: SocketAddr) {
    if !admin.ip().is_loopback() {
        tracing::warn!(%admin, "the admin address has no encryption and is open to other machines");
    }
    let adapter = status.adapter_digest.short();
    info!(
        run = status.run,
        version = status.version,
        rounds = status.rounds,
        parameters = status.parameters,
        adapter,
        phase = status.phase,
        %address,
        %admin,
        "serving"
    );
}
