//! Puts load on a server, and measures its throughput and the latency of its checks.
//!
//! In reading order: [`schedule`] (when each request is due), [`connection`] (sending them, as
//! calls or on a stream), [`call`] and [`response_decode`] (their responses), [`counters`].

mod call;
mod connection;
mod counters;
mod response_decode;
mod schedule;

use std::cell::RefCell;
use std::io;
use std::sync::{Barrier, OnceLock};
use std::time::Duration;

use consentd_os::clock;
use futures_util::StreamExt as _;
use futures_util::future::{LocalBoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::connection::{LoadConnection, connect};
use self::counters::LiveCounters;
use self::schedule::{LoadPlan, Schedule};
use crate::Progress;
use crate::workload::Workload;

pub use self::counters::Counters;
pub use self::schedule::Arrivals;

/// The time between the last thread's connections and the first request, so that all threads begin
/// together.
const START_DELAY: Duration = Duration::from_millis(5);
/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What a connection reads from and writes to.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connected socket: TCP or Unix, with TLS or without.
pub type Socket = Box<dyn Stream>;

/// Connects to the server under load.
pub trait Connect: Sync {
    /// Opens one connection.
    fn connect(&self) -> LocalBoxFuture<'_, io::Result<Socket>>;
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so much time, the warm-up excluded.
    Time(Duration),
    /// After so many requests, the warm-up excluded.
    Requests(u64),
}

/// What a load sends, and how.
#[derive(Debug)]
pub struct Settings {
    /// The requests, which are sent in turn.
    pub workload: Workload,
    /// The number of connections, at least 1.
    pub connections: usize,
    /// The most requests in flight on each connection.
    pub in_flight: usize,
    /// The number of sending threads, from 1 to `connections`.
    pub threads: usize,
    /// Requests a second over all connections: an open loop, whose latencies count from when a
    /// request was due. Without it each request follows a response: a closed loop.
    pub rate: Option<f64>,
    /// The distribution of arrivals in an open loop.
    pub arrivals: Arrivals,
    /// How long the load lasts.
    pub limit: Limit,
    /// For how long load is put on the server before it is measured.
    pub warm_up: Duration,
    /// How long to wait for a connection and for a response.
    pub timeout: Duration,
}

impl Settings {
    fn plan(&self, start: Duration) -> LoadPlan {
        let measure_from = start + self.warm_up;
        LoadPlan {
            start,
            measure_from,
            end: match self.limit {
                Limit::Time(duration) => Some(measure_from + duration),
                Limit::Requests(_) => None,
            },
            grace: self.timeout,
            rate: self.rate,
            arrivals: self.arrivals,
            connections: u64::try_from(self.connections).unwrap_or(u64::MAX),
        }
    }

    fn count(&self) -> Option<u64> {
        match self.limit {
            Limit::Time(_) => None,
            Limit::Requests(count) => Some(count),
        }
    }
}

/// The result of a load.
#[derive(Debug)]
pub struct Measurement {
    /// What was counted after the warm-up.
    pub counters: Counters,
    /// From the end of the warm-up to the last response.
    pub elapsed: Duration,
    /// The CPU time of all sending threads.
    pub cpu: Duration,
    /// The largest share of a CPU that one sending thread used. Close to 1, the client rather than
    /// the server limits the throughput.
    pub busiest_thread: f64,
    /// Whether the load was interrupted.
    pub interrupted: bool,
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system refused a runtime or a timer.
    #[error("cannot put load on it: {0}")]
    Io(#[from] io::Error),
    /// A sending thread panicked.
    #[error("a thread of the load ended by a bug")]
    Panicked,
}

/// Puts load on a server until the settings' limit or until `interrupt` completes. Blocks, so it
/// must not be called from an async context. `on_progress` is called several times a second.
///
/// # Errors
///
/// [`LoadError`] if the load could not be sent. Failures of the server are counted instead.
pub fn run(
    settings: &Settings,
    target: &dyn Connect,
    on_progress: impl FnMut(Progress),
    interrupt: impl Future<Output = ()>,
) -> Result<Measurement, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let live: Vec<_> = (0..settings.threads).map(|_| LiveCounters::default()).collect();
    let shared = Shared {
        settings,
        target,
        connected: Barrier::new(settings.threads),
        start: OnceLock::new(),
        stop: CancellationToken::new(),
    };
    let (running, mut ended) = mpsc::channel::<()>(1);
    let (results, interrupted) = std::thread::scope(|scope| {
        let threads: Vec<_> = live
            .iter()
            .enumerate()
            .map(|(thread, live)| {
                let (shared, running) = (&shared, running.clone());
                scope.spawn(move || {
                    // Dropped when the thread ends, even by a panic.
                    let _running = running;
                    shared.run_thread(thread, live)
                })
            })
            .collect();
        drop(running);
        let watching = shared.watch(&live, &mut ended, on_progress, interrupt);
        let interrupted = runtime.block_on(watching);
        let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        (results.collect::<Vec<_>>(), interrupted)
    });
    let mut measurement = Measurement {
        counters: Counters::new(),
        elapsed: Duration::ZERO,
        cpu: Duration::ZERO,
        busiest_thread: 0.0,
        interrupted,
    };
    for result in results {
        let thread = result.map_err(|_| LoadError::Panicked)??;
        measurement.counters.add(&thread.counters);
        measurement.cpu += thread.cpu;
        let share = thread.cpu.as_secs_f64() / thread.elapsed.as_secs_f64().max(1e-9);
        measurement.busiest_thread = measurement.busiest_thread.max(share);
    }
    let start = shared.start.get().copied().unwrap_or_default();
    let measure_from = settings.plan(start).measure_from;
    measurement.elapsed = measurement.counters.last_response.saturating_sub(measure_from);
    Ok(measurement)
}

/// The result of one sending thread.
struct ThreadResult {
    counters: Counters,
    cpu: Duration,
    elapsed: Duration,
}

/// What the threads of a load share.
struct Shared<'a> {
    settings: &'a Settings,
    target: &'a dyn Connect,
    /// Passed once all threads have connected.
    connected: Barrier,
    /// When the first request is due.
    start: OnceLock<Duration>,
    stop: CancellationToken,
}

impl Shared<'_> {
    /// Sends over this thread's share of the connections.
    fn run_thread(&self, thread: usize, live: &LiveCounters) -> io::Result<ThreadResult> {
        let settings = self.settings;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let connections = (thread..settings.connections).step_by(settings.threads);
        let sockets = runtime.as_ref().ok().map(|runtime| {
            runtime.block_on(async {
                let connect = |_| connect(self.target, settings.timeout);
                tokio::select! {
                    sockets = join_all(connections.clone().map(connect)) => sockets,
                    () = self.stop.cancelled() => Vec::new(),
                }
            })
        });
        // Even after a failure, because the other threads wait for this one.
        self.connected.wait();
        let start = *self.start.get_or_init(|| clock::boot() + START_DELAY);
        let (runtime, sockets) = (runtime?, sockets.unwrap_or_default());
        let (began, cpu_before) = (clock::boot(), clock::thread_cpu());
        let counters = RefCell::new(Counters::new());
        runtime.block_on(async {
            tokio::time::sleep(start.saturating_sub(clock::boot())).await;
            let plan = settings.plan(start);
            let connections = connections.zip(sockets).map(|(number, socket)| {
                let number = u64::try_from(number).unwrap_or(u64::MAX);
                let schedule = Schedule::new(plan, number, settings.count());
                let connection =
                    LoadConnection::new(settings, self.target, schedule, &counters, live)?;
                Ok((connection, socket))
            });
            let connections = connections.collect::<io::Result<Vec<_>>>()?;
            let mut running: FuturesUnordered<_> = connections
                .into_iter()
                .map(|(connection, socket)| async move { connection.run(socket).await })
                .collect();
            tokio::select! {
                () = async { while running.next().await.is_some() {} } => {}
                () = self.stop.cancelled() => {}
            }
            io::Result::Ok(())
        })?;
        Ok(ThreadResult {
            counters: counters.into_inner(),
            cpu: clock::thread_cpu().saturating_sub(cpu_before),
            elapsed: clock::boot().saturating_sub(began),
        })
    }

    /// Reports progress until all threads have ended. Returns whether they were interrupted.
    async fn watch(
        &self,
        live: &[LiveCounters],
        ended: &mut mpsc::Receiver<()>,
        mut on_progress: impl FnMut(Progress),
        interrupt: impl Future<Output = ()>,
    ) -> bool {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        let mut interrupted = false;
        tokio::pin!(interrupt);
        loop {
            tokio::select! {
                _ = ended.recv() => return interrupted,
                () = &mut interrupt, if !interrupted => {
                    interrupted = true;
                    self.stop.cancel();
                }
                _ = ticks.tick() => {
                    let Some(start) = self.start.get() else { continue };
                    let elapsed = clock::boot().saturating_sub(*start);
                    let mut progress = Progress { elapsed, ..Progress::default() };
                    for (checks, errors) in live.iter().map(LiveCounters::read) {
                        progress.answered += checks;
                        progress.failed += errors;
                    }
                    on_progress(progress);
                }
            }
        }
    }
}
