//! What an operator may set of the rules.

use std::time::Duration;

use clap::Args;

use super::{ConfigError, optional, span, wrong};
use consentd_core::decision::Policy;
use consentd_core::event::PlatformNames;
use consentd_core::scope::{Class, ClassSet};

/// By which rules answers are given, where that is asked of no sidecar.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// How long after the user's last message anything could be answered
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    window: Duration,
    /// By how much earlier than WhatsApp does the window was closed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = span)]
    window_margin: Duration,
    /// Classes for which an open window stood in for an opt-in, comma-separated, or none
    #[arg(
        long,
        value_name = "CLASSES",
        default_value = "marketing,utility,authentication,service"
    )]
    window_implies: String,
}

impl PolicyArgs {
    /// The policy that the flags say.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where one of them is wrong.
    pub fn policy(&self) -> Result<Policy, ConfigError> {
        policy(Some(self.window), Some(self.window_margin), Some(&self.window_implies), None)
    }
}

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
