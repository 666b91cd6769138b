//! What an operator may set of the rules.

use std::time::Duration;

use super::{ConfigError, optional, wrong};
use crate::consent::event::PlatformNames;
use crate::consent::scope::{Class, ClassSet};
use crate::decision::Policy;

pub(super) fn policy(
    window: Option<Duration>,
    margin: Option<Duration>,
    implies: Option<&str>,
    stale_allow: Option<&str>,
) -> Result<Policy, ConfigError> {
    let window = window.unwrap_or(Policy::WINDOW);
    if window > Policy::WINDOW {
        return Err(wrong("--window", "WhatsApp's window is 24h: it may be set shorter alone"));
    }
    Ok(Policy {
        window,
        margin: margin.unwrap_or(Policy::MARGIN),
        window_implies: implies
            .map_or(Ok(ClassSet::ALL), |text| classes("--window-implies", text))?,
        stale_allow: stale_allow
            .map_or(Ok(ClassSet::NONE), |text| classes("--stale-allow", text))?,
    })
}

fn classes(setting: &'static str, text: &str) -> Result<ClassSet, ConfigError> {
    let Some(text) = optional(text) else { return Ok(ClassSet::NONE) };
    let class = |name: &str| {
        let name = name.trim();
        Class::from_name(name).ok_or_else(|| {
            let known = Class::ALL.map(Class::name).join(", ");
            wrong(setting, format!("{name:?} is no class; one of {known}, or none"))
        })
    };
    text.split(',').map(class).collect()
}

pub(super) fn names(text: Option<&str>) -> Result<PlatformNames, ConfigError> {
    let Some(text) = text else { return Ok(PlatformNames::default()) };
    if text.split(',').all(|name| name.trim().is_empty()) {
        return Err(wrong("--platform-names", "must name WhatsApp once at the least"));
    }
    Ok(PlatformNames::new(text.split(',').map(str::trim)))
}
