//! When each request is due.

use std::io;
use std::time::Duration;

use siphasher::sip128::SipHasher24;

use super::super::questions::fraction;

/// How requests of an open loop follow each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(in crate::cli::bench) enum Arrivals {
    /// As evenly as they can
    Even,
    /// As those of many senders who do not know each other
    Poisson,
}

/// What all connections of a load do together. Times are those of [`consentd_os::clock::boot`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// When the first requests are due.
    pub(super) start: Duration,
    /// When requests begin to count.
    pub(super) counted_from: Duration,
    /// When none is due any more.
    pub(super) end: Option<Duration>,
    /// For how long after the end those are sent yet that were due before it.
    pub(super) grace: Duration,
    /// How many requests a second are due; without, each follows an answer: a closed loop.
    pub(super) rate: Option<f64>,
    pub(super) arrivals: Arrivals,
    pub(super) connections: u64,
}

/// A request that is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    /// Which question it asks.
    pub(super) number: u64,
    /// When it was to be sent.
    pub(super) intended: Duration,
    /// When it is sent.
    pub(super) sent: Duration,
    /// Whether it is after the warm-up.
    pub(super) counts: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    Due(Ticket),
    /// Nothing before then.
    At(Duration),
    Over,
}

/// The requests of one connection, in turn.
#[derive(Debug)]
pub(super) struct Pace {
    plan: Plan,
    number: u64,
    /// Nanoseconds from the start until the next one is due, in an open loop.
    due: f64,
    /// How many that count are left, where they are counted.
    left: Option<u64>,
    /// Those that were due, and could not be sent because their connection was ending.
    unsent: Vec<Ticket>,
    /// Those that were due, and for which there was no time.
    late: u64,
}

impl Pace {
    /// The share of one of the plan's connections, by its number.
    pub(super) fn new(plan: Plan, connection: u64, count: Option<u64>) -> Self {
        let left = count.map(|count| {
            count / plan.connections + u64::from(connection < count % plan.connections)
        });
        // Connections take turns.
        let due = plan.rate.map_or(0.0, |rate| f64_of(connection) * 1e9 / rate);
        Self { plan, number: connection, due, left, unsent: Vec::new(), late: 0 }
    }

    pub(super) fn next(&mut self, now: Duration) -> Next {
        let open = self.plan.rate.is_some();
        if let Some(ticket) = self.unsent.pop() {
            let intended = if open { ticket.intended } else { now };
            return Next::Due(Ticket { intended, sent: now, ..ticket });
        }
        if self.left == Some(0) {
            return Next::Over;
        }
        // What the warm-up left undone is none of the measurement's.
        while open && now >= self.plan.counted_from && self.intended() < self.plan.counted_from {
            self.advance();
        }
        let intended = if open { self.intended() } else { now };
        if self.plan.end.is_some_and(|end| intended >= end) {
            return Next::Over;
        }
        if intended > now {
            return Next::At(intended);
        }
        if let Some(end) = self.plan.end.filter(|end| now > *end + self.plan.grace) {
            self.give_up(end);
            return Next::Over;
        }
        let ticket = Ticket {
            number: self.number,
            intended,
            sent: now,
            counts: intended >= self.plan.counted_from,
        };
        if ticket.counts {
            self.left = self.left.map(|left| left.saturating_sub(1));
        }
        self.advance();
        Next::Due(ticket)
    }

    /// When the next one of an open loop is due.
    fn intended(&self) -> Duration {
        self.plan.start + nanoseconds(self.due)
    }

    fn advance(&mut self) {
        if let Some(rate) = self.plan.rate {
            self.due += self.gap() * f64_of(self.plan.connections) * 1e9 / rate;
        }
        self.number = self.number.wrapping_add(self.plan.connections);
    }

    /// There is no time left for what was due before the end.
    fn give_up(&mut self, end: Duration) {
        while self.plan.rate.is_some() && self.intended() < end {
            self.late += 1;
            self.advance();
        }
    }

    /// How many requests were due, and were not sent for want of time.
    pub(super) fn late(&self) -> u64 {
        self.late
    }

    /// Keeps a request that was due for the next connection.
    pub(super) fn put_back(&mut self, ticket: Ticket) {
        self.unsent.push(ticket);
    }

    /// Whether nothing waits that was put back.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty()
    }

    /// The time between two requests of this connection, its mean being 1.
    fn gap(&self) -> f64 {
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
fn f64_of(count: u64) -> f64 {
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

/// Wakes to the microsecond; the runtime's own timers, to the millisecond, are too coarse for a
/// load of thousands a second.
#[cfg(target_os = "linux")]
pub(super) struct Alarm(tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>);

#[cfg(target_os = "linux")]
impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        // The same clock as `consentd_os::clock::boot`.
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        #[allow(deprecated, reason = "what it wants instead is unsafe; this owns its descriptor")]
        Ok(Self(tokio::io::unix::AsyncFd::new(timer)?))
    }

    pub(super) async fn at(&self, at: Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at.subsec_nanos().into(),
        };
        let when = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::ABSTIME, &when)?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| {
                let mut times = [0; 8];
                Ok(rustix::io::read(timer.get_ref(), &mut times)?)
            });
            // It may have been readable for a time that was set before.
            if let Ok(read) = read {
                return read.map(|_| ());
            }
        }
    }
}

/// Elsewhere the runtime's own timers must do.
#[cfg(not(target_os = "linux"))]
pub(super) struct Alarm;

#[cfg(not(target_os = "linux"))]
impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn at(&self, at: Duration) -> io::Result<()> {
        tokio::time::sleep(at.saturating_sub(consentd_os::clock::boot())).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn plan(rate: Option<f64>, arrivals: Arrivals, connections: u64) -> Plan {
        Plan {
            start: MILLI * 100,
            counted_from: MILLI * 110,
            end: Some(MILLI * 1_110),
            grace: MILLI * 100,
            rate,
            arrivals,
            connections,
        }
    }

    /// All tickets of a pace whose requests are sent when they are due.
    fn all(mut pace: Pace) -> Vec<Ticket> {
        let (mut now, mut tickets) = (MILLI * 100, Vec::new());
        loop {
            match pace.next(now) {
                Next::Due(ticket) => tickets.push(ticket),
                Next::At(at) => now = at,
                Next::Over => return tickets,
            }
        }
    }

    #[test]
    fn connections_share_an_even_rate() {
        let plan = plan(Some(1_000.0), Arrivals::Even, 4);
        let paces = (0..4).map(|connection| Pace::new(plan, connection, None));
        let mut tickets: Vec<_> = paces.flat_map(all).collect();
        tickets.sort_by_key(|ticket| ticket.number);
        assert_eq!(tickets.len(), 1_010);
        assert_eq!(tickets.iter().filter(|ticket| ticket.counts).count(), 1_000);
        for (number, ticket) in (0..).zip(&tickets) {
            assert_eq!((ticket.number, ticket.intended), (number.into(), MILLI * (100 + number)));
        }
    }

    #[test]
    fn a_count_is_shared_and_begins_after_the_warm_up() {
        let plan = Plan { end: None, ..plan(Some(1_000.0), Arrivals::Even, 4) };
        let paces = (0..4).map(|connection| Pace::new(plan, connection, Some(10)));
        let tickets: Vec<_> = paces.flat_map(all).collect();
        assert_eq!(tickets.iter().filter(|ticket| ticket.counts).count(), 10);
        assert_eq!(tickets.len(), 20);
    }

    #[test]
    fn poisson_arrivals_have_the_same_mean_and_are_not_even() {
        let plan = plan(Some(10_000.0), Arrivals::Poisson, 1);
        let tickets = all(Pace::new(plan, 0, None));
        assert!((9_700..10_500).contains(&tickets.len()), "{}", tickets.len());
        let gaps = tickets.windows(2).map(|pair| pair[1].intended.saturating_sub(pair[0].intended));
        let short = gaps.filter(|gap| *gap < Duration::from_micros(50)).count();
        // 1 - e^(-1/2) of them.
        assert!((3_700..4_200).contains(&short), "{short}");
    }

    #[test]
    fn what_is_late_keeps_its_time_and_what_was_put_back_comes_first() {
        let mut pace = Pace::new(plan(Some(1_000.0), Arrivals::Even, 1), 0, None);
        let Next::Due(first) = pace.next(MILLI * 150) else { panic!() };
        // The warm-up's ten are forgotten.
        assert_eq!((first.number, first.intended, first.sent), (10, MILLI * 110, MILLI * 150));
        pace.put_back(first);
        let Next::Due(again) = pace.next(MILLI * 160) else { panic!() };
        assert_eq!((again.number, again.intended, again.sent), (10, MILLI * 110, MILLI * 160));
        let mut closed = Pace::new(plan(None, Arrivals::Even, 1), 0, None);
        let Next::Due(ticket) = closed.next(MILLI * 150) else { panic!() };
        assert_eq!((ticket.intended, ticket.counts), (MILLI * 150, true));
        assert!(matches!(closed.next(MILLI * 1_110), Next::Over));
    }

    #[test]
    fn what_there_is_no_time_for_is_counted() {
        let mut pace = Pace::new(plan(Some(1_000.0), Arrivals::Even, 1), 0, None);
        for _ in 0..10 {
            assert!(matches!(pace.next(MILLI * 1_210), Next::Due(_)));
        }
        for _ in 0..2 {
            assert!(matches!(pace.next(MILLI * 1_211), Next::Over));
            assert_eq!(pace.late(), 990);
        }
    }

    #[tokio::test]
    async fn an_alarm_wakes_after_its_time_and_not_for_an_earlier_one() {
        let alarm = Alarm::new().unwrap();
        let soon = consentd_os::clock::boot() + MILLI;
        let given_up = tokio::time::timeout(MILLI * 20, async {
            alarm.at(soon).await.unwrap();
            std::future::pending::<()>().await;
        });
        given_up.await.unwrap_err();
        drop(
            tokio::time::timeout(Duration::ZERO, alarm.at(consentd_os::clock::boot() + MILLI))
                .await,
        );
        let later = consentd_os::clock::boot() + MILLI * 30;
        alarm.at(later).await.unwrap();
        assert!(consentd_os::clock::boot() >= later);
    }
}
