//! What is known of a template's category, written down a second time, from docs/rules.md alone: every
//! event is kept, and what holds is found among all of them.

/// What was said of a template, or of all of a business.
#[derive(Clone, Debug)]
pub enum Said {
    /// The template is of this category.
    Category(&'static str),
    /// All utility is marketing, until then if that is said.
    Restricted(Option<i64>),
    /// It is no longer.
    Free,
}

/// Classes, the least strict first.
const CLASSES: [&str; 4] = ["service", "authentication", "utility", "marketing"];

fn strictness(class: &str) -> usize {
    CLASSES.iter().position(|known| *known == class).expect("a class")
}

/// The class that decides about a template, by what was said and when; times are in milliseconds.
pub fn class_that_decides(said: &[(i64, Said)], asked: &'static str, now: i64) -> &'static str {
    // Of the latest event, and of those of the same time the strictest.
    let category = said.iter().filter_map(|(time, said)| match said {
        Said::Category(class) => Some((*time, strictness(class))),
        _ => None,
    });
    let known = category.max().map_or(0, |(_, strictness)| strictness);
    let class = CLASSES[known.max(strictness(asked))];
    let freed = said.iter().filter(|(_, said)| matches!(said, Said::Free)).map(|(time, _)| *time);
    let freed = freed.max().unwrap_or(i64::MIN);
    let is_restricted = said.iter().any(|(time, said)| match said {
        // What is said at the same time as that it is over, stands.
        Said::Restricted(until) => *time >= freed && until.is_none_or(|end| now < end),
        _ => false,
    });
    match class {
        "utility" | "service" if is_restricted => "marketing",
        class => class,
    }
}
