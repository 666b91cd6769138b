//! One connection of a load. It speaks HTTP/2 directly, so that the server is measured rather than
//! a client library.

mod stream;

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use consentd_os::clock;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use http::Request;
use tokio::sync::Mutex;
use tonic::Code;

use self::stream::CheckStream;
use super::call::{CallFailure, request_headers, unary_call};
use super::counters::{Counters, LiveCounters};
use super::response_decode::{Outcome, outcomes};
use super::schedule::{DueRequest, Next, PreciseTimer, Schedule};
use super::{Connect, Settings, Socket};
use crate::workload::GRPC_PREFIX_BYTES;

/// How often requests are checked for a timeout.
const TIMEOUT_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two attempts to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// How long calls may take to fail after their connection has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(50);

/// The HTTP/2 flow-control window of a stream and of a connection, in bytes.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A request in flight, if the slot is used.
type Slot = Cell<Option<DueRequest>>;

/// The part of a load that goes over one connection, and over those that replace it.
pub(super) struct LoadConnection<'a> {
    settings: &'a Settings,
    target: &'a dyn Connect,
    schedule: Mutex<Schedule>,
    timer: PreciseTimer,
    slots: Vec<Slot>,
    /// Whether the schedule has nothing left to be sent.
    is_finished: Cell<bool>,
    /// How many requests got a response or an error.
    completed: Cell<u64>,
    counters: &'a RefCell<Counters>,
    live: &'a LiveCounters,
}

impl<'a> LoadConnection<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        target: &'a dyn Connect,
        schedule: Schedule,
        counters: &'a RefCell<Counters>,
        live: &'a LiveCounters,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            target,
            schedule: Mutex::new(schedule),
            timer: PreciseTimer::new()?,
            slots: (0..settings.in_flight).map(|_| Cell::new(None)).collect(),
            is_finished: Cell::new(false),
            completed: Cell::new(0),
            counters,
            live,
        })
    }

    /// Sends what is due until nothing is left, over `socket` and over the sockets that replace it.
    pub(super) async fn run(&self, socket: Option<Socket>) {
        self.send_all(socket).await;
        self.counters.borrow_mut().not_sent += self.schedule.lock().await.not_sent();
    }

    async fn send_all(&self, mut next_socket: Option<Socket>) {
        let mut last_failure = CallFailure::from(Code::Unavailable);
        while let Some(socket) = next_socket {
            let completed_before = self.completed.get();
            let Err(failure) = self.drive(socket).await else { return };
            last_failure = failure;
            self.abandon_in_flight(failure).await;
            if self.has_sent_all().await {
                return;
            }
            // If a connection completes nothing, another one would not either.
            let was_useful = self.completed.get() != completed_before;
            next_socket =
                if was_useful { connect(self.target, self.settings.timeout).await } else { None };
        }
        self.counters.borrow_mut().count_lost_connection(match last_failure {
            CallFailure::Code(code) => code,
            CallFailure::NotProcessed => Code::Unavailable.into(),
        });
    }

    /// Fails all requests in flight, or schedules them again if the server did not process them.
    async fn abandon_in_flight(&self, failure: CallFailure) {
        let mut schedule = self.schedule.lock().await;
        for request in self.slots.iter().filter_map(Cell::take) {
            match failure {
                CallFailure::Code(code) => self.count_failure(&request, code),
                CallFailure::NotProcessed => schedule.put_back(request),
            }
        }
    }

    async fn has_sent_all(&self) -> bool {
        self.is_finished.get() && !self.schedule.lock().await.has_returned()
    }

    /// Sends over one socket until nothing is left or the connection fails.
    async fn drive(&self, socket: Socket) -> Result<(), CallFailure> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false);
        let (sender, connection) = builder.handshake(socket).await?;
        let work = async {
            if self.settings.workload.call().is_unary() {
                self.run_callers(&sender).await;
            } else {
                CheckStream::open(self, sender).await?.run().await?;
            }
            if self.has_sent_all().await { Ok(()) } else { Err(Code::Unavailable.into()) }
        };
        tokio::pin!(work);
        // Requests are queued before the connection is polled, so that the poll sends them.
        tokio::select! {
            biased;
            done = &mut work => done,
            // The calls in flight have been failed by h2; let them observe it.
            _ = connection => match tokio::time::timeout(CLOSE_TIMEOUT, work).await {
                Ok(done) => done,
                Err(_) => Err(Code::Unavailable.into()),
            },
            () = self.timed_out() => Err(Code::DeadlineExceeded.into()),
        }
    }

    /// Completes once a request has been in flight for longer than the timeout.
    async fn timed_out(&self) {
        let mut ticks = tokio::time::interval(TIMEOUT_CHECK_INTERVAL);
        loop {
            ticks.tick().await;
            let earliest = clock::boot().saturating_sub(self.settings.timeout);
            let is_late = |slot: &Slot| slot.get().is_some_and(|request| request.sent < earliest);
            if self.slots.iter().any(is_late) {
                return;
            }
        }
    }

    /// Sends each request as a call of its own: one caller for each slot.
    async fn run_callers(&self, sender: &SendRequest<Bytes>) {
        let headers = request_headers(self.settings.workload.call());
        let callers = self.slots.iter().map(|slot| self.run_caller(slot, sender.clone(), &headers));
        let mut callers: FuturesUnordered<_> = callers.collect();
        while callers.next().await.is_some() {}
    }

    /// Sends one call after the other until nothing is left or the connection ends.
    async fn run_caller(&self, slot: &Slot, mut sender: SendRequest<Bytes>, headers: &Request<()>) {
        while let Some(request) = self.next_due().await {
            slot.set(Some(request));
            let Ok(ready) = sender.ready().await else {
                slot.set(None);
                self.schedule.lock().await.put_back(request);
                return;
            };
            sender = ready;
            let bytes = self.settings.workload.request(request.number);
            match unary_call(&mut sender, headers.clone(), bytes).await {
                Ok(body) => self.complete(slot, body.get(GRPC_PREFIX_BYTES..).unwrap_or_default()),
                Err(CallFailure::NotProcessed) => {
                    slot.set(None);
                    self.schedule.lock().await.put_back(request);
                }
                Err(CallFailure::Code(code)) => {
                    slot.set(None);
                    self.completed.set(self.completed.get() + 1);
                    self.count_failure(&request, code);
                }
            }
        }
    }

    /// The next request, once it is due. The lock is held while it waits, so that callers queue.
    async fn next_due(&self) -> Option<DueRequest> {
        let mut schedule = self.schedule.lock().await;
        loop {
            match schedule.next(clock::boot()) {
                Next::Send(request) => return Some(request),
                Next::WaitUntil(time) => self.wait_until(time).await,
                Next::Finished => {
                    self.is_finished.set(true);
                    return None;
                }
            }
        }
    }

    async fn wait_until(&self, time: Duration) {
        if self.timer.sleep_until(time).await.is_err() {
            // The runtime's timer is coarser, and always works.
            tokio::time::sleep(time.saturating_sub(clock::boot())).await;
        }
    }

    /// Counts the response to the request in a slot, and frees the slot.
    fn complete(&self, slot: &Slot, message: &[u8]) {
        let now = clock::boot();
        let Some(request) = slot.take() else { return };
        self.completed.set(self.completed.get() + 1);
        let mut counters = self.counters.borrow_mut();
        let (mut decisions, mut errors) = (0, 0);
        let decoded = outcomes(self.settings.workload.call(), message, |outcome| {
            match outcome {
                Outcome::Decision(_) => decisions += 1,
                Outcome::Error(_) => errors += 1,
            }
            if request.is_measured {
                counters.count_outcome(outcome);
            }
        });
        let questions = self.settings.workload.questions(request.number);
        if decoded.is_err() || decisions + errors != questions {
            errors += 1;
            if request.is_measured {
                counters.count_error(Code::Internal.into());
            }
        } else if request.is_measured {
            counters.count_response(&request, now);
        }
        self.live.add(decisions, errors);
    }

    /// Counts a failure of a stream that had no request in flight: otherwise those count as failed.
    fn stream_failed(&self, failure: CallFailure) -> CallFailure {
        if let CallFailure::Code(code) = failure
            && self.slots.iter().all(|slot| slot.get().is_none())
        {
            self.counters.borrow_mut().count_error(code);
            self.live.add(0, 1);
        }
        failure
    }

    fn count_failure(&self, request: &DueRequest, code: i32) {
        if request.is_measured {
            self.counters.borrow_mut().count_error(code);
        }
        self.live.add(0, 1);
    }
}

/// Connects, with retries until the timeout.
pub(super) async fn connect(target: &dyn Connect, timeout: Duration) -> Option<Socket> {
    let connecting = async {
        loop {
            match target.connect().await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(RECONNECT_INTERVAL).await,
            }
        }
    };
    tokio::time::timeout(timeout, connecting).await.ok()
}
