//! The effects of what is said of templates: choices about classes, in the record of the template or of the
//! account.

use crate::scope::{Class, Scope};
use crate::state::{Choice, Effect};
use crate::time::Timestamp;

/// What the topic begins with under which a restriction of an account is kept that ends. Its end, in seconds
/// of Unix time, follows. So whatever keeps the restriction as an opt-out keeps its end.
pub(crate) const UNTIL: &str = "until_";

/// The effects of a template's category: it may not be sent as what is less strict, and may be sent as it
/// and as what is stricter.
pub(super) fn category_effects(category: Class, time: Timestamp, lift: Timestamp) -> Vec<Effect> {
    let choice = |class: Class| {
        if class.strictness() < category.strictness() {
            Some(Choice::opt_out(time))
        } else {
            (lift > Timestamp::MIN).then(|| Choice::opt_in(lift, None))
        }
    };
    let effect = |class| Some(Effect::Choice(Scope::Class(class), choice(class)?));
    Class::ALL.into_iter().filter_map(effect).chain(known_again(lift)).collect()
}

/// An erased template or account is suppressed until something is recorded of it again.
fn known_again(time: Timestamp) -> Option<Effect> {
    (time > Timestamp::MIN).then_some(Effect::Suppression { time, suppressed: false })
}

/// The topic under which a restriction with this end is kept. Its end is rounded up to the second.
fn until_topic(end: Timestamp) -> String {
    let millis = end.as_millis();
    let seconds = millis.div_euclid(1_000).saturating_add(i64::from(millis.rem_euclid(1_000) > 0));
    format!("{UNTIL}{seconds}")
}

/// The effects of a restriction of the account, or of its end: utility may not be sent as such.
pub(super) fn restriction_effects(
    restricted: bool,
    until: Option<Timestamp>,
    time: Timestamp,
) -> Vec<Effect> {
    let utility = Scope::Class(Class::Utility);
    if !restricted {
        let lifted = Effect::Choice(utility, Choice::opt_in(time, None));
        return std::iter::once(lifted).chain(known_again(time)).collect();
    }
    let scope = match until {
        None => utility,
        Some(end) => Scope::Topic(Class::Utility, until_topic(end).into()),
    };
    vec![Effect::Choice(scope, Choice::opt_out(time))]
}
