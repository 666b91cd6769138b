//! The columns of a CSV input.

use anyhow::bail;
use csv::StringRecord;

use super::fault::{Fault, INVALID_TIME};
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;

/// All columns. An input may have them in any order.
pub(super) const COLUMNS: [&str; 21] = [
    "user_id",
    "business_id",
    "event_time",
    "event",
    "category",
    "scope",
    "method",
    "statement",
    "business_name",
    "locale",
    "reference",
    "confirmation",
    "expire_time",
    "pending",
    "message_id",
    "text",
    "marketing_stopped",
    "code",
    "suppressed",
    "other_user_id",
    "moved",
];

/// The values of the column `event`, which are the contract's names, and the columns that each
/// uses.
pub(super) const EVENTS: [(&str, &[&str]); 7] = [
    (
        "opt_in",
        &[
            "category",
            "method",
            "statement",
            "business_name",
            "locale",
            "reference",
            "confirmation",
            "expire_time",
            "pending",
        ],
    ),
    ("opt_out", &["scope", "reference"]),
    ("inbound_message", &["message_id", "text"]),
    ("platform_preference", &["marketing_stopped"]),
    ("delivery_failure", &["code"]),
    ("suppression", &["suppressed", "reference"]),
    ("link", &["other_user_id", "moved"]),
];

/// The header of an input.
pub(super) struct Columns {
    header: StringRecord,
    /// The cell of each of [`COLUMNS`], if the input has it.
    cells: [Option<usize>; COLUMNS.len()],
}

impl Columns {
    /// Reads a header.
    pub(super) fn new(header: StringRecord, delimiter: char) -> anyhow::Result<Self> {
        let mut cells = [None; COLUMNS.len()];
        if header.len() == 1
            && let Some(other) = [';', '\t', '|', ','].into_iter().find(|other| {
                *other != delimiter && header.get(0).is_some_and(|cell| cell.contains(*other))
            })
        {
            let name = if other == '\t' { "tabs".to_owned() } else { format!("`{other}`") };
            let flag = if other == '\t' { "$'\\t'".to_owned() } else { format!("'{other}'") };
            bail!(
                "the columns are separated by {name} and not by `{delimiter}`, as some \
                 spreadsheets save them: give --delimiter {flag}"
            );
        }
        for (index, cell) in header.iter().enumerate() {
            let name = cell.trim();
            let Some(column) = COLUMNS.iter().position(|column| *column == name) else {
                bail!("no column `{name}` is known: there are {}", COLUMNS.join(", "));
            };
            match cells.get_mut(column) {
                Some(slot @ None) => *slot = Some(index),
                _ => bail!("the column {name} is there twice"),
            }
        }
        let columns = Self { header, cells };
        for needed in ["user_id", "business_id", "event"] {
            if columns.index(needed).is_none() {
                bail!(
                    "the column {needed} is missing; the first line must name the columns: {}",
                    COLUMNS.join(", ")
                );
            }
        }
        Ok(columns)
    }

    pub(super) fn header(&self) -> &StringRecord {
        &self.header
    }

    fn index(&self, name: &str) -> Option<usize> {
        let column = COLUMNS.iter().position(|column| *column == name)?;
        self.cells.get(column).copied().flatten()
    }

    /// The event of a row.
    pub(super) fn event(&self, cells: &StringRecord) -> Result<pb::ConsentEvent, Fault> {
        if cells.len() != self.header.len() {
            let (found, wanted) = (cells.len(), self.header.len());
            let why = format!("has {found} cells, and the header {wanted}: is a comma not quoted?");
            return Err(Fault::new("", why));
        }
        let row = Cells { columns: self, cells };
        let event = row.text("event");
        let Some((_, used)) = EVENTS.iter().find(|(name, _)| *name == event) else {
            let known = EVENTS.map(|(name, _)| name).join(", ");
            return Err(Fault::new("event", format!("must be one of {known}")));
        };
        let own = ["user_id", "business_id", "event_time", "event"];
        let filled = |name: &&&str| !row.text(name).is_empty();
        let mut stray = COLUMNS.iter().filter(|name| !own.contains(name) && !used.contains(name));
        if let Some(stray) = stray.find(|name| filled(name)) {
            return Err(Fault::new(*stray, format!("must be empty where event is {event}")));
        }
        Ok(pb::ConsentEvent {
            user_id: row.text("user_id").to_owned(),
            business_id: row.text("business_id").to_owned(),
            event_time: row.time("event_time")?,
            what: Some(row.what(event)?),
        })
    }
}

struct Cells<'a> {
    columns: &'a Columns,
    cells: &'a StringRecord,
}

impl Cells<'_> {
    fn text(&self, name: &str) -> &str {
        self.columns.index(name).and_then(|index| self.cells.get(index)).unwrap_or("").trim()
    }

    fn owned(&self, name: &str) -> String {
        self.text(name).to_owned()
    }

    fn what(&self, event: &str) -> Result<What, Fault> {
        Ok(match event {
            "opt_in" => What::OptIn(pb::OptIn {
                category: self.owned("category"),
                evidence: Some(pb::Evidence {
                    method: self.method()?.into(),
                    statement: self.owned("statement"),
                    business_name: self.owned("business_name"),
                    locale: self.owned("locale"),
                    reference: self.owned("reference"),
                    confirmation: self.owned("confirmation"),
                }),
                expire_time: self.time("expire_time")?,
                pending: self.flag("pending", Some(false))?,
            }),
            "opt_out" => What::OptOut(pb::OptOut {
                scope: self.owned("scope"),
                reference: self.owned("reference"),
            }),
            "inbound_message" => What::InboundMessage(pb::InboundMessage {
                message_id: self.owned("message_id"),
                text: self.owned("text"),
            }),
            "platform_preference" => What::PlatformPreference(pb::PlatformPreference {
                marketing_stopped: self.flag("marketing_stopped", None)?,
            }),
            "delivery_failure" => {
                let code = self.text("code").parse();
                let why = "must be WhatsApp's error code, such as 131047";
                let code = code.map_err(|_| Fault::new("code", why))?;
                What::DeliveryFailure(pb::DeliveryFailure { code })
            }
            "link" => What::Link(pb::Link {
                other_user_id: self.owned("other_user_id"),
                moved: self.flag("moved", Some(false))?,
            }),
            _ => What::Suppression(pb::Suppression {
                suppressed: self.flag("suppressed", None)?,
                reference: self.owned("reference"),
            }),
        })
    }

    fn method(&self) -> Result<pb::OptInMethod, Fault> {
        let name = self.text("method").to_ascii_uppercase().replace([' ', '-'], "_");
        let full =
            if name.starts_with("OPT_IN_METHOD_") { name } else { format!("OPT_IN_METHOD_{name}") };
        let method = pb::OptInMethod::from_str_name(&full);
        method.filter(|method| *method != pb::OptInMethod::Unspecified).ok_or_else(|| {
            let why = "must be one of sms, website, whatsapp, phone, in_person, whatsapp_signup";
            Fault::new("method", why)
        })
    }

    fn flag(&self, name: &str, default: Option<bool>) -> Result<bool, Fault> {
        match (self.text(name).to_ascii_lowercase().as_str(), default) {
            ("true" | "1" | "yes", _) => Ok(true),
            ("false" | "0" | "no", _) => Ok(false),
            ("", Some(default)) => Ok(default),
            _ => Err(Fault::new(name, "must be true or false")),
        }
    }

    fn time(&self, name: &str) -> Result<Option<prost_types::Timestamp>, Fault> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        // prost assumes UTC if there is no zone, which the author may not have meant.
        let zone = text.get(10..).is_some_and(|time| time.contains(['Z', 'z', '+', '-']));
        let time = text.parse::<prost_types::Timestamp>().ok().filter(|_| zone);
        time.map(Some).ok_or_else(|| Fault::new(name, INVALID_TIME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn import_page_lists_every_event_and_its_columns() {
        let page = include_str!("../../../docs/import-export.md");
        for (event, columns) in EVENTS {
            let columns: Vec<_> = columns.iter().map(|column| format!("`{column}`")).collect();
            let row = format!("| `{event}` | {} |", columns.join(", "));
            assert!(page.contains(&row), "{row}");
        }
        let used = EVENTS.iter().flat_map(|(_, columns)| *columns);
        let own = ["user_id", "business_id", "event_time", "event"];
        let all: std::collections::BTreeSet<_> = used.chain(&own).collect();
        assert_eq!(all, COLUMNS.iter().collect());
    }
}
