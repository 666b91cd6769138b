//! The first promise, where sidecars fail: nothing is allowed after an opt-out that was acknowledged before it was
//! asked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd_client::Event;

use crate::fixture::{PATIENCE, opt_in, patient, question, sidecar, signal};

/// How long the faults go on, in seconds.
const VARIABLE: &str = "FAULT_SECONDS";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_opt_out_is_forgotten_while_the_sidecar_is_killed_and_stopped() {
    let seconds = std::env::var(VARIABLE).map_or(20, |text| text.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut sidecar = sidecar(&[]).await;
    let recorder = patient(sidecar.address());
    // Checks have their usual deadline, so that they fail as they would.
    let client = sidecar.client().unwrap();
    // Users of whom the opt-in is acknowledged, and how many of the first of them have opted out.
    let opted_in = Arc::new(Mutex::new(Vec::<String>::new()));
    let opted_out = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(AtomicBool::new(false));
    let (asked, allowed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());

    let recording = tokio::spawn({
        let (opted_in, opted_out) = (Arc::clone(&opted_in), Arc::clone(&opted_out));
        let ended = Arc::clone(&ended);
        async move {
            for number in 0.. {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let user = format!("user-{number}");
                recorder.record_within(opt_in(&user), PATIENCE).await.expect("it is recorded");
                opted_in.lock().unwrap().push(user);
                // The last four are left, so that something may be allowed.
                if number >= 4 {
                    let user = format!("user-{}", number - 4);
                    let opt_out = Event::opt_out(user, "acme", "*");
                    recorder.record_within(opt_out, PATIENCE).await.expect("it is recorded");
                    opted_out.store(number - 3, Ordering::SeqCst);
                }
            }
        }
    });
    let callers: Vec<_> = (0..32)
        .map(|caller: usize| {
            let (client, opted_in) = (client.clone(), Arc::clone(&opted_in));
            let (opted_out, ended) = (Arc::clone(&opted_out), Arc::clone(&ended));
            let (asked, allowed) = (Arc::clone(&asked), Arc::clone(&allowed));
            tokio::spawn(async move {
                let mut number = caller;
                while !ended.load(Ordering::SeqCst) {
                    number = number.wrapping_mul(31).wrapping_add(caller + 1);
                    let out = opted_out.load(Ordering::SeqCst);
                    let known = opted_in.lock().unwrap().clone();
                    let back = number % 12;
                    let Some(index) = known.len().checked_sub(back + 1) else {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        continue;
                    };
                    let verdict = client.may_send(question(&known[index])).await;
                    assert!(
                        index >= out || !verdict.is_allowed(),
                        "user {index} of {out}: {verdict}"
                    );
                    asked.fetch_add(1, Ordering::Relaxed);
                    allowed.fetch_add(usize::from(verdict.is_allowed()), Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();

    let mut faults = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(200 + 97 * (faults % 7))).await;
        match faults % 3 {
            0 => sidecar.restart().await.unwrap(),
            1 => {
                signal(&sidecar, "STOP");
                tokio::time::sleep(Duration::from_millis(300)).await;
                signal(&sidecar, "CONT");
            }
            _ => {
                signal(&sidecar, "TERM");
                sidecar.wait().unwrap();
                sidecar.restart().await.unwrap();
            }
        }
        faults += 1;
    }
    ended.store(true, Ordering::SeqCst);
    recording.await.unwrap();
    for caller in callers {
        caller.await.unwrap();
    }
    let (asked, allowed) = (asked.load(Ordering::Relaxed), allowed.load(Ordering::Relaxed));
    let out = opted_out.load(Ordering::SeqCst);
    println!("{faults} faults, {asked} checks of which {allowed} allowed, {out} opt-outs");
    assert!(faults > 2 && allowed > 0 && out > 0, "{faults} {allowed} {out}");
}
