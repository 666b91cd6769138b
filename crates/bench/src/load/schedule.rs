//! When each request of a connection is due: an open loop at a rate, or a closed loop.

use std::io;
use std::time::Duration;

use siphasher::sip128::SipHasher24;

use crate::workload::fraction;

/// The distribution of the times between requests of an open loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrivals {
    /// Equal times.
    Even,
    /// Exponentially distributed times, as of many independent senders.
    Poisson,
}

/// What all connections of a load have in common. Times are those of [`consentd_os::clock::boot`].
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadPlan {
    /// When the first requests are due.
    pub(super) start: Duration,
    /// The end of the warm-up: requests that are due later are measured.
    pub(super) measure_from: Duration,
    /// Requests that would be due at this time or later are not sent.
    pub(super) end: Option<Duration>,
    /// For how long after the end overdue requests are still sent.
    pub(super) grace: Duration,
    /// Requests a second over all connections: an open loop. Without it each request follows a
    /// response: a closed loop.
    pub(super) rate: Option<f64>,
    pub(super) arrivals: Arrivals,
    pub(super) connections: u64,
}

/// A request that is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct DueRequest {
    /// Its number in the workload.
    pub(super) number: u64,
    /// When it should be sent. Latencies count from here.
    pub(super) due: Duration,
    /// When it is sent. Service times count from here.
    pub(super) sent: Duration,
    /// Whether it is due after the warm-up.
    pub(super) is_measured: bool,
}

/// What a connection does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// It sends this request.
    Send(DueRequest),
    /// It waits until this time.
    WaitUntil(Duration),
    /// Nothing is left to be sent.
    Finished,
}

/// The requests of one connection, in turn.
#[derive(Debug)]
pub(super) struct Schedule {
    plan: LoadPlan,
    number: u64,
    /// When the next request of an open loop is due, in nanoseconds since the start.
    due_nanos: f64,
    /// How many measured requests are left, if their number is limited.
    remaining: Option<u64>,
    /// Requests that the server did not process because their connection was closing.
    returned: Vec<DueRequest>,
    /// How many requests were overdue when the grace ended.
    not_sent: u64,
}

impl Schedule {
    /// The schedule of the plan's connection with this number. `count` limits the measured requests
    /// of all connections together.
    pub(super) fn new(plan: LoadPlan, connection: u64, count: Option<u64>) -> Self {
        let remaining = count.map(|count| {
            count / plan.connections + u64::from(connection < count % plan.connections)
        });
        // Connections take turns.
        let due_nanos = plan.rate.map_or(0.0, |rate| as_f64(connection) * 1e9 / rate);
        let returned = Vec::new();
        Self { plan, number: connection, due_nanos, remaining, returned, not_sent: 0 }
    }

    pub(super) fn next(&mut self, now: Duration) -> Next {
        let is_open = self.plan.rate.is_some();
        if let Some(request) = self.returned.pop() {
            let due = if is_open { request.due } else { now };
            return Next::Send(DueRequest { due, sent: now, ..request });
        }
        if self.remaining == Some(0) {
            return Next::Finished;
        }
        // A backlog of the warm-up must not delay measured requests.
        while is_open && now >= self.plan.measure_from && self.due() < self.plan.measure_from {
            self.advance();
        }
        let due = if is_open { self.due() } else { now };
        if self.plan.end.is_some_and(|end| due >= end) {
            return Next::Finished;
        }
        if due > now {
            return Next::WaitUntil(due);
        }
        if let Some(end) = self.plan.end.filter(|end| now > *end + self.plan.grace) {
            self.skip_until(end);
            return Next::Finished;
        }
        let is_measured = due >= self.plan.measure_from;
        let request = DueRequest { number: self.number, due, sent: now, is_measured };
        if is_measured {
            self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(1));
        }
        self.advance();
        Next::Send(request)
    }

    /// When the next request of an open loop is due.
    fn due(&self) -> Duration {
        self.plan.start + nanoseconds(self.due_nanos)
    }

    fn advance(&mut self) {
        if let Some(rate) = self.plan.rate {
            self.due_nanos += self.interarrival_time() * as_f64(self.plan.connections) * 1e9 / rate;
        }
        self.number = self.number.wrapping_add(self.plan.connections);
    }

    /// Counts the overdue requests of an open loop as not sent.
    fn skip_until(&mut self, end: Duration) {
        while self.plan.rate.is_some() && self.due() < end {
            self.not_sent += 1;
            self.advance();
        }
    }

    /// How many requests were overdue when the grace ended, and were not sent.
    pub(super) fn not_sent(&self) -> u64 {
        self.not_sent
    }

    /// Takes a request back that the server did not process. It is the next one to be sent.
    pub(super) fn put_back(&mut self, request: DueRequest) {
        self.returned.push(request);
    }

    /// Whether a request was put back and not sent again.
    pub(super) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// The time between two requests of this connection, in units of its mean.
    fn interarrival_time(&self) -> f64 {
        match self.plan.arrivals {
            Arrivals::Even => 1.0,
            Arrivals::Poisson => {
                let random = SipHasher24::new_with_keys(0, 1).hash(&self.number.to_be_bytes());
                -(1.0 - fraction(random.h1)).ln()
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of connections are small")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "nanoseconds that are not negative; a cast saturates"
)]
fn nanoseconds(nanoseconds: f64) -> Duration {
    Duration::from_nanos(nanoseconds as u64)
}

/// A timer with microsecond precision. The runtime's own timers have a millisecond's, which is too
/// coarse for thousands of requests a second.
#[cfg(target_os = "linux")]
pub(super) struct PreciseTimer(tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>);

#[cfg(target_os = "linux")]
impl PreciseTimer {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        // The same clock as `consentd_os::clock::boot`.
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        #[allow(deprecated, reason = "its successor is unsafe; this one owns its descriptor")]
        Ok(Self(tokio::io::unix::AsyncFd::new(timer)?))
    }

    pub(super) async fn sleep_until(&self, time: Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let when = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::ABSTIME, &when)?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| {
                let mut expirations = [0; 8];
                Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)
            });
            // Readiness may be left over from an earlier time; then the read would block.
            if let Ok(read) = read {
                return read.map(|_| ());
            }
        }
    }
}

/// The runtime's own timer, on systems without timerfd.
#[cfg(not(target_os = "linux"))]
pub(super) struct PreciseTimer;

#[cfg(not(target_os = "linux"))]
impl PreciseTimer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn sleep_until(&self, time: Duration) -> io::Result<()> {
        tokio::time::sleep(time.saturating_sub(consentd_os::clock::boot())).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn plan(rate: Option<f64>, arrivals: Arrivals, connections: u64) -> LoadPlan {
        LoadPlan {
            start: MILLI * 100,
            measure_from: MILLI * 110,
            end: Some(MILLI * 1_110),
            grace: MILLI * 100,
            rate,
            arrivals,
            connections,
        }
    }

    /// All requests of a schedule, each sent when it is due.
    fn all(mut schedule: Schedule) -> Vec<DueRequest> {
        let (mut now, mut requests) = (MILLI * 100, Vec::new());
        loop {
            match schedule.next(now) {
                Next::Send(request) => requests.push(request),
                Next::WaitUntil(time) => now = time,
                Next::Finished => return requests,
            }
        }
    }

    #[test]
    fn even_rate_is_shared_by_connections() {
        let plan = plan(Some(1_000.0), Arrivals::Even, 4);
        let schedules = (0..4).map(|connection| Schedule::new(plan, connection, None));
        let mut requests: Vec<_> = schedules.flat_map(all).collect();
        requests.sort_by_key(|request| request.number);
        assert_eq!(requests.len(), 1_010);
        assert_eq!(requests.iter().filter(|request| request.is_measured).count(), 1_000);
        for (number, request) in (0..).zip(&requests) {
            assert_eq!((request.number, request.due), (number.into(), MILLI * (100 + number)));
        }
    }

    #[test]
    fn count_is_shared_and_begins_after_the_warm_up() {
        let plan = LoadPlan { end: None, ..plan(Some(1_000.0), Arrivals::Even, 4) };
        let schedules = (0..4).map(|connection| Schedule::new(plan, connection, Some(10)));
        let requests: Vec<_> = schedules.flat_map(all).collect();
        assert_eq!(requests.iter().filter(|request| request.is_measured).count(), 10);
        assert_eq!(requests.len(), 20);
    }

    #[test]
    fn poisson_arrivals_keep_the_mean_and_are_uneven() {
        let plan = plan(Some(10_000.0), Arrivals::Poisson, 1);
        let requests = all(Schedule::new(plan, 0, None));
        assert!((9_700..10_500).contains(&requests.len()), "{}", requests.len());
        let gaps = requests.windows(2).map(|pair| pair[1].due.saturating_sub(pair[0].due));
        let short = gaps.filter(|gap| *gap < Duration::from_micros(50)).count();
        // 1 - e^(-1/2) of them.
        assert!((3_700..4_200).contains(&short), "{short}");
    }

    #[test]
    fn late_request_keeps_its_due_time_and_returned_request_comes_first() {
        let mut schedule = Schedule::new(plan(Some(1_000.0), Arrivals::Even, 1), 0, None);
        let Next::Send(first) = schedule.next(MILLI * 150) else { panic!() };
        // The ten overdue requests of the warm-up are dropped.
        assert_eq!((first.number, first.due, first.sent), (10, MILLI * 110, MILLI * 150));
        schedule.put_back(first);
        let Next::Send(again) = schedule.next(MILLI * 160) else { panic!() };
        assert_eq!((again.number, again.due, again.sent), (10, MILLI * 110, MILLI * 160));
        let mut closed = Schedule::new(plan(None, Arrivals::Even, 1), 0, None);
        let Next::Send(request) = closed.next(MILLI * 150) else { panic!() };
        assert_eq!((request.due, request.is_measured), (MILLI * 150, true));
        assert!(matches!(closed.next(MILLI * 1_110), Next::Finished));
    }

    #[test]
    fn overdue_requests_after_the_grace_are_counted_as_not_sent() {
        let mut schedule = Schedule::new(plan(Some(1_000.0), Arrivals::Even, 1), 0, None);
        for _ in 0..10 {
            assert!(matches!(schedule.next(MILLI * 1_210), Next::Send(_)));
        }
        for _ in 0..2 {
            assert!(matches!(schedule.next(MILLI * 1_211), Next::Finished));
            assert_eq!(schedule.not_sent(), 990);
        }
    }

    #[tokio::test]
    async fn timer_set_again_ignores_the_earlier_time() {
        let timer = PreciseTimer::new().unwrap();
        let soon = consentd_os::clock::boot() + MILLI;
        let timed_out = tokio::time::timeout(MILLI * 20, async {
            timer.sleep_until(soon).await.unwrap();
            std::future::pending::<()>().await;
        });
        timed_out.await.unwrap_err();
        drop(
            tokio::time::timeout(
                Duration::ZERO,
                timer.sleep_until(consentd_os::clock::boot() + MILLI),
            )
            .await,
        );
        let later = consentd_os::clock::boot() + MILLI * 30;
        timer.sleep_until(later).await.unwrap();
        assert!(consentd_os::clock::boot() >= later);
    }
}
