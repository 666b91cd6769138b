//! The rules that an operator may set.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::values::{span, unless_none};
use super::{ConfigError, wrong};
use consentd_core::country_list::{CountryList, MAX_COUNTRIES};
use consentd_core::decision::Policy;
use consentd_core::event::{PlatformNames, StatementNames};
use consentd_core::failure::{self, UserFailure, UserFailures};
use consentd_core::scope::{Class, ClassSet};

/// The rules that an operator may set for a sidecar.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyArgs {
    /// Deny as STALE once the table's last proof is older than this [default: 5s]
    #[arg(long, env = "CONSENTD_MAX_STALENESS", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub max_staleness: Option<Duration>,
    /// How long after the user's last message anything may be answered [default: 24h]
    #[arg(long, env = "CONSENTD_WINDOW", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub window: Option<Duration>,
    /// Close the window by so much earlier than WhatsApp does [default: 60s]
    #[arg(long, env = "CONSENTD_WINDOW_MARGIN", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub window_margin: Option<Duration>,
    /// Classes for which an open window stands in for an opt-in, comma-separated, or none
    /// [default: marketing,utility,authentication,service]
    #[arg(long, env = "CONSENTD_WINDOW_IMPLIES", value_name = "CLASSES")]
    pub window_implies: Option<String>,
    /// Classes that are still allowed while the proof is merely late, comma-separated, or none
    /// [default: none]
    #[arg(long, env = "CONSENTD_STALE_ALLOW", value_name = "CLASSES")]
    pub stale_allow: Option<String>,
    /// Deny messages to a user after WhatsApp refused one with these codes, comma-separated, or none:
    /// 130403, 130472 (marketing templates alone, unless the window is open), 130497
    /// [default: none]
    #[arg(long, env = "CONSENTD_DENY_AFTER_FAILURE", value_name = "CODES")]
    pub deny_after_failure: Option<String>,
    /// Deny marketing templates to users whose phone number begins so, or whose business-scoped id is
    /// of this country, comma-separated, such as 1,US; or none [default: none]
    #[arg(long, env = "CONSENTD_MARKETING_BLOCKED_COUNTRIES", value_name = "PREFIXES")]
    pub marketing_blocked_countries: Option<String>,
    /// Names by which a statement may call WhatsApp, comma-separated, in place of the built-in ones
    #[arg(long, env = "CONSENTD_PLATFORM_NAMES", value_name = "NAMES")]
    pub platform_names: Option<String>,
    /// What the statement of an opt-in must name: whatsapp-and-business, or business, which takes a
    /// general one too [default: whatsapp-and-business]
    #[arg(long, env = "CONSENTD_STATEMENT_NAMES", value_name = "WHAT")]
    pub statement_names: Option<String>,
}

impl PolicyArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            max_staleness: self.max_staleness.or(weaker.max_staleness),
            window: self.window.or(weaker.window),
            window_margin: self.window_margin.or(weaker.window_margin),
            window_implies: self.window_implies.or(weaker.window_implies),
            stale_allow: self.stale_allow.or(weaker.stale_allow),
            deny_after_failure: self.deny_after_failure.or(weaker.deny_after_failure),
            marketing_blocked_countries: self
                .marketing_blocked_countries
                .or(weaker.marketing_blocked_countries),
            platform_names: self.platform_names.or(weaker.platform_names),
            statement_names: self.statement_names.or(weaker.statement_names),
        }
    }

    /// The policy of checks.
    pub(super) fn policy(&self) -> Result<Policy, ConfigError> {
        policy(
            self.window,
            self.window_margin,
            self.window_implies.as_deref(),
            self.stale_allow.as_deref(),
            self.deny_after_failure.as_deref(),
        )
    }

    /// The countries that get no marketing templates.
    pub(super) fn blocked_countries(&self) -> Result<CountryList, ConfigError> {
        const SETTING: &str = "--marketing-blocked-countries";
        let text = self.marketing_blocked_countries.as_deref().and_then(unless_none);
        let Some(text) = text else { return Ok(CountryList::default()) };
        let list = CountryList::parse(text.split(',').map(str::trim));
        let list = list.map_err(|error| wrong(SETTING, error.to_string()))?;
        if list.len() > MAX_COUNTRIES {
            return Err(wrong(SETTING, format!("names more than {MAX_COUNTRIES} countries")));
        }
        Ok(list)
    }

    /// The staleness of the table beyond which checks are denied, 5 s by default.
    pub(super) fn max_staleness(&self) -> Result<Duration, ConfigError> {
        let max_staleness = self.max_staleness.unwrap_or(Duration::from_secs(5));
        if max_staleness < Duration::from_millis(10) || max_staleness > Duration::from_hours(24) {
            return Err(wrong("--max-staleness", "must be from 10ms to 24h, such as 5s"));
        }
        Ok(max_staleness)
    }

    /// What a statement must name, and the names by which it may call WhatsApp.
    pub(super) fn platform_names(&self) -> Result<PlatformNames, ConfigError> {
        let required = self.statement_names.as_deref().map(statement_names).transpose();
        let required = required.map_err(|why| wrong("--statement-names", why))?;
        let names = self.named_platform()?;
        Ok(names.with_required(required.unwrap_or_default()))
    }

    fn named_platform(&self) -> Result<PlatformNames, ConfigError> {
        let Some(text) = self.platform_names.as_deref() else {
            return Ok(PlatformNames::default());
        };
        if text.split(',').all(|name| name.trim().is_empty()) {
            return Err(wrong("--platform-names", "must name WhatsApp once at the least"));
        }
        Ok(PlatformNames::new(text.split(',').map(str::trim)))
    }
}

/// What a statement must name, by the value of the flag.
///
/// # Errors
///
/// The text says which values there are.
pub fn statement_names(text: &str) -> Result<StatementNames, String> {
    match text.trim() {
        "whatsapp-and-business" => Ok(StatementNames::WhatsappAndBusiness),
        "business" => Ok(StatementNames::Business),
        _ => Err("must be whatsapp-and-business or business".to_owned()),
    }
}

/// The rules by which a past check is decided again, without asking a sidecar.
#[derive(Args, Clone, Debug)]
pub struct PastPolicyArgs {
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
    /// Codes after which messages were denied, comma-separated, or none
    #[arg(long, value_name = "CODES", default_value = "none")]
    deny_after_failure: String,
}

impl PastPolicyArgs {
    /// The policy of past checks.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the flag whose value is invalid.
    pub fn policy(&self) -> Result<Policy, ConfigError> {
        let (implies, codes) = (Some(&*self.window_implies), Some(&*self.deny_after_failure));
        policy(Some(self.window), Some(self.window_margin), implies, None, codes)
    }
}

fn policy(
    window: Option<Duration>,
    margin: Option<Duration>,
    implies: Option<&str>,
    stale_allow: Option<&str>,
    deny_after: Option<&str>,
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
        deny_after: deny_after.map_or(Ok(UserFailures::NONE), failures)?,
        bars_marketing_templates: false,
    })
}

/// The codes of `--deny-after-failure`. Only a failure that concerns the user alone may deny the user.
fn failures(text: &str) -> Result<UserFailures, ConfigError> {
    let Some(text) = unless_none(text) else { return Ok(UserFailures::NONE) };
    let code = |text: &str| {
        let text = text.trim();
        let found = text.parse().ok().map(|code| (code, UserFailure::of(code)));
        if let Some((_, Some(failure))) = found {
            return Ok(failure);
        }
        let known = UserFailure::ALL.map(|failure| failure.code().to_string()).join(", ");
        let about = found.and_then(|(code, _)| failure::of(code));
        let about = about.map_or_else(String::new, |known| format!(" ({})", known.meaning));
        let why = format!(
            "{text:?}{about} is no code by which a user may be denied; one of {known}, or none"
        );
        Err(wrong("--deny-after-failure", why))
    };
    text.split(',').map(code).collect()
}

fn classes(setting: &'static str, text: &str) -> Result<ClassSet, ConfigError> {
    let Some(text) = unless_none(text) else { return Ok(ClassSet::NONE) };
    let class = |name: &str| {
        let name = name.trim();
        Class::from_name(name).ok_or_else(|| {
            let known = Class::ALL.map(Class::name).join(", ");
            wrong(setting, format!("{name:?} is no class; one of {known}, or none"))
        })
    };
    text.split(',').map(class).collect()
}
