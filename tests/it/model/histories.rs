//! Histories of one pair, made to collide: what the model and the sidecar are asked to agree on.

use super::{AHEAD, CAP, Event, HOUR, MINUTE, Method, Rng, What, covering, user_key};

/// Categories to record and to ask about: one topic is in two classes, and one is a keyword's.
#[rustfmt::skip]
pub const CATEGORIES: [&str; 8] = [
    "marketing", "marketing.deals", "marketing.order_updates", "utility", "utility.promotions",
    "utility.order_updates", "authentication", "service",
];

#[rustfmt::skip]
const TEXTS: [&str; 36] = [
    "hello", "", "STOP", "Stop.", "  stop ", "Stóp!", "_stop_", "STOP 🛑", "unsubscribe",
    "Opt-Out",
    "opt out", "stop promotions", "Stop Promotions. 🙏", "stop marketing", "Stop utility",
    "stop deals", "stop order updates", "STOP order_updates", "stop utility.order_updates",
    "stop orderupdates", "stop unheard_of", "yes", "Yes!", "YES 👍", "yes", "yes please", "start",
    "unstop", "we must stop this bill", "stop it", "please stop", "stop-promotions",
    "STOP STOP", "stop now, please", "please stop marketing", "stop order updates, thank you",
];

/// 1 to 9 events of one pair that are meant to collide; an opt-out, then a pending opt-in to what
/// it covers, then a text, is common.
///
/// With `boundaries`, times lie on and next to every boundary that depends on `now`: for clocks
/// that stand still. Without, every time stays 8 minutes or more from them, and events next to the
/// clock 2 minutes or more, so that a minute may pass between generating, recording and
/// asking. Events that get the ledger's clock still need one that moves between two recordings.
pub fn history(
    rng: &mut Rng,
    user: &str,
    business: &str,
    now: i64,
    boundaries: bool,
) -> Vec<Event> {
    let window = 24 * HOUR - MINUTE;
    let (hour, old) = (now - HOUR, now - 72 * HOUR);
    let mut times = vec![hour, hour, hour - 1, hour + 1, hour + 2, now - 2 * HOUR, old, old + 1];
    let mut expiries = vec![hour, now - 3 * HOUR, now + HOUR, now + 72 * HOUR, now + 72 * HOUR];
    if boundaries {
        for edge in [now, now - window, now - CAP] {
            times.extend([edge - 1, edge, edge + 1]);
        }
        times.extend([now + AHEAD - 1, now + AHEAD, now + AHEAD + 1]);
        times.extend([now - AHEAD - 1, now - AHEAD, now - AHEAD + 1]);
        expiries.extend([now - 1, now, now + 1]);
    } else {
        for edge in [now - window, now - CAP] {
            times.extend([edge - 10 * MINUTE, edge + 10 * MINUTE]);
        }
        times.extend([now - 10 * MINUTE, now - MINUTE, now + 2 * MINUTE, now + 2 * MINUTE]);
        times.push(now + 20 * MINUTE);
        expiries.extend([now - 10 * MINUTE, now + 10 * MINUTE]);
    }
    let length = 1 + rng.below(9);
    let mut events: Vec<Event> = Vec::new();
    while events.len() < length {
        if !events.is_empty() && rng.percent(15) {
            let mut replay = rng.pick(&events);
            replay.user = notation(rng, user);
            if rng.percent(10) {
                replay.request_id = request_id(rng);
            }
            events.push(replay);
            continue;
        }
        let mut next = vec![(rng.pick(&times), what(rng, &expiries))];
        if events.len() + 3 <= length && rng.percent(30) {
            let mut ordered = [(); 3].map(|()| rng.pick(&times));
            ordered.sort_unstable();
            next = ordered.into_iter().zip(opt_out_then_pending(rng, &expiries)).collect();
        }
        for (time, what) in next {
            let time = (!rng.percent(15)).then_some(time);
            // An opt-in without a time needs an id; now and then it is left out, to be refused.
            let needed = time.is_none() && matches!(what, What::OptIn { .. });
            let mut id = String::new();
            if rng.percent(if needed { 95 } else { 40 }) {
                id = request_id(rng);
            }
            if !events.is_empty() && rng.percent(5) {
                id = rng.pick(&events).request_id;
            }
            let (user, business) = (notation(rng, user), business.to_owned());
            events.push(Event { user, business, time, request_id: id, what });
        }
    }
    events
}

/// The business's numbers, and an unknown one.
const NUMBERS: [Option<&str>; 3] = [None, Some("106540352242922"), Some("106540352242923")];

fn request_id(rng: &mut Rng) -> String {
    format!("r{}", rng.below(40))
}

/// An opt-out, a pending opt-in to what it covers, and a text.
fn opt_out_then_pending(rng: &mut Rng, expiries: &[i64]) -> [What; 3] {
    let category = rng.pick(&CATEGORIES);
    let scope = rng.pick(&covering(category)).to_owned();
    let texted = scope == "*" && rng.percent(50);
    let text = rng.pick(&["yes", "yes", "Yes 👍", "hello", "stop deals"]).to_owned();
    [
        if texted { What::Inbound { text: "STOP".to_owned() } } else { What::OptOut { scope } },
        opt_in(rng, category, 100, expiries),
        What::Inbound { text },
    ]
}

/// An opt-in that is pending this often of a hundred times.
fn opt_in(rng: &mut Rng, category: &str, pending: usize, expiries: &[i64]) -> What {
    let signup = Method::WhatsappSignup(rng.pick(&NUMBERS));
    let method = if rng.percent(15) { signup } else { Method::Ordinary };
    let expire = rng.percent(40).then(|| rng.pick(expiries));
    What::OptIn { category: category.to_owned(), method, pending: rng.percent(pending), expire }
}

fn what(rng: &mut Rng, expiries: &[i64]) -> What {
    let malformed = rng.percent(3);
    match rng.below(100) {
        0..34 if malformed => {
            let bad = rng.pick(&["*", "sales", "utility.", "utility.Order", "marketing.a.b"]);
            opt_in(rng, bad, 35, expiries)
        }
        0..34 => {
            let category = rng.pick(&CATEGORIES);
            opt_in(rng, category, 35, expiries)
        }
        34..50 if malformed => What::OptOut { scope: "everything".to_owned() },
        34..40 => What::OptOut { scope: "*".to_owned() },
        40..50 => What::OptOut { scope: rng.pick(&CATEGORIES).to_owned() },
        50..76 => What::Inbound { text: rng.pick(&TEXTS).to_owned() },
        76..83 => What::Platform { stopped: rng.percent(60), number: rng.pick(&NUMBERS) },
        83..96 => {
            let codes =
                [131047, 131047, 131049, 131049, 131050, 131026, 130472, 130403, 130497, 131056];
            What::Failure { code: rng.pick(&codes), number: rng.pick(&NUMBERS) }
        }
        _ => What::Suppress { suppressed: rng.percent(50) },
    }
}

/// One of the ways to write a phone number, all of them with the same key; other ids stay.
pub fn notation(rng: &mut Rng, user: &str) -> String {
    let Some(key) = user_key(user).filter(|key| key.bytes().all(|b| b.is_ascii_digit())) else {
        return user.to_owned();
    };
    // The notations with a mobile digit are others of the same line, where they have its key.
    let mut lines = vec![key.clone()];
    for (at, digit) in [(2, "1"), (2, "9"), (4, "9")] {
        let (start, end) = key.split_at(key.len().min(at));
        lines.push([start, digit, end].concat());
    }
    lines.retain(|line| user_key(line).as_ref() == Some(&key));
    let line = rng.pick(&lines);
    let (start, end) = line.split_at(line.len().min(3));
    match rng.below(4) {
        0 => line,
        1 => format!("+{start}\u{a0}{end}"),
        2 => format!("({start}) {end}\u{3000}"),
        _ => format!("+{start}.-{end}"),
    }
}
