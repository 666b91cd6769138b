//! What Meta's Graph API says is subscribed, from files with its answers.
//!
//! - `GET /{app-id}/subscriptions`: the fields that the app is subscribed to, and its callback URL
//!   (<https://developers.facebook.com/docs/graph-api/reference/app/subscriptions/>, read 2026-11-30).
//! - `GET /{waba-id}/phone_numbers?fields=id,webhook_configuration`, or the same fields of one number:
//!   the callback URL of each number, with what overrides it for the number or for its account
//!   (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/override>,
//!   2026-06-28).
//!
//! An answer is recognised by its shape. Of a callback URL nothing is kept but its scheme, its host and its
//! path: a query may hold a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// The `object` of the subscriptions that concern WhatsApp.
const OBJECT: &str = "whatsapp_business_account";

/// The largest answer that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// All that the files say.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscriptions {
    /// The app's own subscription.
    pub(super) app: Option<AppSubscription>,
    /// The callback URLs of each number.
    pub(super) numbers: BTreeMap<String, Callbacks>,
}

/// What the app is subscribed to.
#[derive(Clone, Debug, Default)]
pub(super) struct AppSubscription {
    pub(super) callback: Option<String>,
    pub(super) active: bool,
    pub(super) fields: BTreeSet<String>,
}

/// Where the webhooks of a number are posted.
#[derive(Clone, Debug, Default)]
pub(super) struct Callbacks {
    /// The URL that overrides the app's: the number's own, or else that of its account.
    pub(super) by: Option<String>,
    /// The app's URL.
    pub(super) app: Option<String>,
}

impl Callbacks {
    /// Whether the number's webhooks are posted to another URL than those that an override does not
    /// carry.
    pub(super) fn are_overridden(&self) -> bool {
        self.by.is_some() && self.by != self.app
    }
}

impl Subscriptions {
    /// Reads the files; an empty list is nothing that is known.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or is no such answer.
    pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for path in paths {
            let value = read_json(path)
                .with_context(|| format!("--subscriptions: cannot read {}", path.display()))?;
            all.add(&value).with_context(|| format!("--subscriptions: {}", path.display()))?;
        }
        Ok(all)
    }

    fn add(&mut self, answer: &Value) -> anyhow::Result<()> {
        if let Some(error) = answer.get("error") {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
            bail!("Meta refused the question (error {code}): check the token and its permissions");
        }
        let items = match answer.get("data") {
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) => bail!("its \"data\" is no list"),
            None => std::slice::from_ref(answer),
        };
        let is_of_app = |item: &Value| item.get("object").is_some() && item.get("fields").is_some();
        // An app without any subscription is answered with an empty list.
        if items.iter().all(is_of_app) {
            self.app = Some(AppSubscription::of(items));
            return Ok(());
        }
        for item in items {
            let id = item.get("id").and_then(Value::as_str);
            let Some(id) =
                id.filter(|_| item.get("display_phone_number").is_none_or(Value::is_string))
            else {
                bail!(
                    "this is neither an answer to /APP_ID/subscriptions nor one to \
                     /WABA_ID/phone_numbers?fields=id,webhook_configuration"
                );
            };
            let Some(urls) = item.get("webhook_configuration") else {
                bail!(
                    "it has no webhook_configuration: ask for the fields id,webhook_configuration"
                );
            };
            let url = |name| urls.get(name).and_then(Value::as_str).and_then(public_part);
            let by = url("phone_number").or_else(|| url("whatsapp_business_account"));
            self.numbers.insert(id.to_owned(), Callbacks { by, app: url("application") });
        }
        Ok(())
    }
}

impl AppSubscription {
    fn of(items: &[Value]) -> Self {
        let ours =
            items.iter().find(|item| item.get("object").and_then(Value::as_str) == Some(OBJECT));
        let Some(item) = ours else { return Self::default() };
        let fields = item.get("fields").and_then(Value::as_array).into_iter().flatten();
        // A field is an object with its name and version; earlier versions of the API had the name.
        let name = |field: &Value| field.get("name").unwrap_or(field).as_str().map(str::to_owned);
        Self {
            callback: item.get("callback_url").and_then(Value::as_str).and_then(public_part),
            active: item.get("active").and_then(Value::as_bool).unwrap_or(true),
            fields: fields.filter_map(name).collect(),
        }
    }
}

/// A URL without user, password, query and fragment; `None` for an empty text.
fn public_part(url: &str) -> Option<String> {
    let url = url.trim().split(['?', '#']).next().filter(|url| !url.is_empty())?;
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, path)| (a, Some(path)));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = path.map(|path| format!("/{path}")).unwrap_or_default();
    Some(format!("{scheme}://{host}{path}"))
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE_BYTES {
        bail!("it has {length} bytes, more than any answer");
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_in_callback_urls_are_not_kept() {
        for (url, kept) in [
            ("https://a.example/webhook?token=secret#x", "https://a.example/webhook"),
            ("https://user:secret@a.example:8443/w", "https://a.example:8443/w"),
            ("https://a.example", "https://a.example"),
        ] {
            assert_eq!(public_part(url).as_deref(), Some(kept));
        }
        assert_eq!(public_part(" "), None);
    }

    #[test]
    fn answers_are_recognised_by_their_shape() {
        let mut all = Subscriptions::default();
        let app = json!({"data": [
            {"object": "page", "fields": [{"name": "feed"}]},
            {"object": OBJECT, "callback_url": "https://a.example/w", "active": true,
             "fields": [{"name": "messages", "version": "v25.0"}, {"name": "user_preferences"}]},
        ]});
        all.add(&app).unwrap();
        let fields = &all.app.as_ref().unwrap().fields;
        assert_eq!(
            fields.iter().map(String::as_str).collect::<Vec<_>>(),
            ["messages", "user_preferences"]
        );
        let numbers = json!({"data": [
            {"id": "1", "webhook_configuration": {"application": "https://a.example/w"}},
            {"id": "2", "webhook_configuration": {
                "phone_number": "https://b.example/w", "whatsapp_business_account": "https://c.example/w",
                "application": "https://a.example/w"}},
        ]});
        all.add(&numbers).unwrap();
        assert!(!all.numbers["1"].are_overridden());
        assert_eq!(all.numbers["2"].by.as_deref(), Some("https://b.example/w"));
        assert!(all.numbers["2"].are_overridden());
        for (wrong, part) in [
            (json!({"error": {"code": 190, "message": "the token EAAJ"}}), "error 190"),
            (json!({"data": [{"id": "1"}]}), "webhook_configuration"),
            (json!({"data": 7}), "no list"),
            (json!([]), "neither"),
        ] {
            let error = format!("{:#}", all.add(&wrong).unwrap_err());
            assert!(error.contains(part) && !error.contains("EAAJ"), "{error}");
        }
    }
}
