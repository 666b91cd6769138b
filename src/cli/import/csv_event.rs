//! Turns the rows of a CSV file into events.

use std::borrow::Cow;

use consentd_core::template;
use consentd_core::user_id::Region;
use consentd_os::clock;

use super::cells::{DOUBLED_QUOTES, Ending, Splitter};
use super::columns::{Columns, EVENTS};
use super::csv_options::{CsvOptions, Defaults, Values};
use super::fault::Fault;
use super::guard::without_guard;
use super::parser::{Parsed, is_denial};
use super::rows::{Defect, MAX_ROW_BYTES, OpenQuote, Row};
use super::times::{self, Moment, NotATime};
use crate::cli::time::to_wire;
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;

/// The columns of words and foreign ids, which may begin with an apostrophe of their own.
const TEXTS: [&str; 6] =
    ["statement", "business_name", "reference", "confirmation", "text", "message_id"];

/// The columns that every event uses.
const OF_ALL_EVENTS: [&str; 4] = ["user_id", "business_id", "event_time", "event"];

/// The values of the column `method`. The contract's names are read too.
const METHODS: [(&str, pb::OptInMethod); 6] = [
    ("sms", pb::OptInMethod::Sms),
    ("website", pb::OptInMethod::Website),
    ("whatsapp", pb::OptInMethod::Whatsapp),
    ("phone", pb::OptInMethod::Phone),
    ("in_person", pb::OptInMethod::InPerson),
    ("whatsapp_signup", pb::OptInMethod::WhatsappSignup),
];

/// What the contract writes before the names of [`METHODS`].
const METHOD_PREFIX: &str = "opt_in_method_";

/// What the rows of one file mean.
#[derive(Debug)]
pub(super) struct CsvParser {
    columns: Columns,
    options: CsvOptions,
    /// The values of columns where the file has none.
    values: Values,
    region: Option<Region>,
    dates_denials: bool,
}

impl CsvParser {
    pub(super) fn new(
        columns: Columns,
        options: &CsvOptions,
        defaults: &Defaults,
    ) -> anyhow::Result<Self> {
        let values = options.values(defaults);
        columns.check(&values)?;
        let (region, dates_denials) =
            (defaults.region.clone(), defaults.undated_opt_outs.is_some());
        Ok(Self { columns, options: options.clone(), values, region, dates_denials })
    }

    /// The region whose numbers lack their country code.
    pub(super) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    /// The event of a row, or why there is none.
    pub(super) fn event(&self, row: &Row) -> Parsed<pb::ConsentEvent> {
        if let Some(defect) = row.defect {
            return Parsed::Fault(self.fault_of(defect));
        }
        let text = match self.decoded(&row.raw) {
            Ok(text) => text,
            Err(fault) => return Parsed::Fault(fault),
        };
        let mut splitter = self.columns.shape.splitter();
        let ending = splitter.split(text.as_bytes());
        if ending != Ending::Closed {
            let field = self.columns.name_at(splitter.len());
            return Parsed::Fault(Fault::new(field, DOUBLED_QUOTES));
        }
        if splitter.are_empty_from(text.as_bytes(), 0) {
            return Parsed::Blank;
        }
        if !self.columns.shape.fits(&splitter, text.as_bytes()) {
            let (found, wanted) = (splitter.len(), self.columns.shape.named);
            let why = format!("has {found} cells, and the header {wanted}: is a comma not quoted?");
            return Parsed::Fault(Fault::new("", why));
        }
        let cells = Cells { parser: self, cells: splitter.texts(&text) };
        if !self.columns.are_met(|place| cells.at(place)) {
            return Parsed::LeftOut;
        }
        match cells.event() {
            Ok(event) => Parsed::Event(event),
            Err(fault) => Parsed::Fault(fault),
        }
    }

    fn decoded<'r>(&self, raw: &'r [u8]) -> Result<Cow<'r, str>, Fault> {
        self.options.encoding.decode(raw).map_err(|error| {
            let (before, _) = raw.split_at(error.valid_up_to);
            let mut splitter = Splitter::new(self.columns.shape.delimiter);
            splitter.split(before);
            let field = self.columns.name_at(splitter.len().saturating_sub(1));
            Fault::new(field, error.to_string())
        })
    }

    fn fault_of(&self, defect: Defect) -> Fault {
        let (place, why) = match defect {
            Defect::TooLong => return Fault::new("", too_long()),
            Defect::OpenQuote(place, why) => (place, why),
        };
        let because = match why {
            OpenQuote::RowInside(line) => format!("line {line} looks like a row of its own"),
            OpenQuote::TextBehind(line) => {
                format!("behind the next one, on line {line}, the cell does not end")
            }
            OpenQuote::OtherCount(line, cells) => format!(
                "with the lines up to {line} the row has {cells} cells, and the header {}",
                self.columns.shape.named
            ),
            OpenQuote::NotClosed => "no later line closes it".to_owned(),
        };
        let field = self.columns.name_at(place);
        Fault::new(field, format!("a quote is not closed on this line, and {because}: close it"))
    }

    fn moment(&self, name: &str, text: &str) -> Result<Option<Moment>, Fault> {
        if text.is_empty() {
            return Ok(None);
        }
        let moment = times::read(text, self.options.time_format, self.options.time_zone.as_ref());
        moment.map(Some).map_err(|NotATime(why)| Fault::new(name, why))
    }
}

/// What is said of a row that is too long.
pub(super) fn too_long() -> String {
    format!("longer than {MAX_ROW_BYTES} bytes, so that it is not kept: no event is that long")
}

/// The cells of a row.
struct Cells<'a> {
    parser: &'a CsvParser,
    cells: Vec<Cow<'a, str>>,
}

impl Cells<'_> {
    fn at(&self, place: usize) -> &str {
        self.cells.get(place).map_or("", AsRef::as_ref)
    }

    /// The cell of a column, without its guard; empty if the file has none.
    fn own(&self, name: &str) -> &str {
        self.parser.columns.index(name).map_or("", |place| self.unguarded(name, place))
    }

    fn unguarded(&self, name: &str, place: usize) -> &str {
        without_guard(self.at(place), TEXTS.contains(&name))
    }

    /// The value of a column, which is given by a flag where the file has none.
    fn text(&self, name: &str) -> &str {
        match self.own(name) {
            "" => self.parser.values.of(name).unwrap_or_default(),
            own => own,
        }
    }

    fn owned(&self, name: &str) -> String {
        self.text(name).to_owned()
    }

    fn event(&self) -> Result<pb::ConsentEvent, Fault> {
        let columns = &self.parser.columns;
        if let Some(place) = columns.unnamed_cell(|place| self.at(place)) {
            let why = "the column has no name, and this row's cell is not empty: is a comma not \
                       quoted?";
            return Err(Fault::new(format!("cell {}", place + 1), why));
        }
        let Some((event, used)) = by_name(self.text("event"), "", &EVENTS) else {
            let known = EVENTS.map(|(name, _)| name).join(", ");
            return Err(Fault::new("event", format!("must be one of {known}")));
        };
        let is_used = |name: &str| OF_ALL_EVENTS.contains(&name) || used.contains(&name);
        let is_stray = |(name, place): &&(&str, usize)| {
            !is_used(name) && !self.unguarded(name, *place).is_empty()
        };
        if let Some((stray, _)) = columns.known().iter().find(is_stray) {
            return Err(Fault::new(*stray, format!("must be empty where event is {event}")));
        }
        let what = self.what(event)?;
        Ok(pb::ConsentEvent {
            user_id: self.subject(event),
            business_id: self.owned("business_id"),
            event_time: self.event_time(&what)?,
            what: Some(what),
        })
    }

    /// Whom or what the event is about.
    fn subject(&self, event: &str) -> String {
        match (event, self.text("user_id")) {
            ("template_category", "") => {
                let (name, language) = (self.text("template_name"), self.text("template_language"));
                let id = format!("{}{name}:{language}", template::PREFIX);
                template::canonical(&id).unwrap_or(id)
            }
            ("template_restriction", "") => template::ACCOUNT.to_owned(),
            (_, user_id) => user_id.to_owned(),
        }
    }

    /// When the event happened. A denial holds over what happened on the same day or minute.
    fn event_time(&self, what: &What) -> Result<Option<prost_types::Timestamp>, Fault> {
        let is_denial = is_denial(what);
        let time = match self.parser.moment("event_time", self.text("event_time")) {
            Err(_) if is_denial && self.parser.dates_denials => None,
            moment => match moment? {
                Some(moment) if is_denial => moment.of_denial(clock::wall),
                moment => moment.map(|moment| moment.first),
            },
        };
        Ok(time.map(to_wire))
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
                    phone_number_id: self.owned("phone_number_id"),
                    // The sidecar sets it.
                    statement_names: pb::StatementNames::Unspecified.into(),
                }),
                expire_time: self.time_of("expire_time")?,
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
                phone_number_id: self.owned("phone_number_id"),
            }),
            "delivery_failure" => {
                let code = self.text("code").parse();
                let why = "must be WhatsApp's error code, such as 131047";
                let code = code.map_err(|_| Fault::new("code", why))?;
                let phone_number_id = self.owned("phone_number_id");
                What::DeliveryFailure(pb::DeliveryFailure { code, phone_number_id })
            }
            "template_category" => What::TemplateCategory(pb::TemplateCategory {
                category: self.text("category").to_ascii_lowercase(),
                lift_time: None,
                reference: self.owned("reference"),
            }),
            "template_restriction" => What::TemplateRestriction(pb::TemplateRestriction {
                restricted: self.flag("restricted", None)?,
                until_time: self.time_of("until_time")?,
                reference: self.owned("reference"),
            }),
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

    fn time_of(&self, column: &str) -> Result<Option<prost_types::Timestamp>, Fault> {
        let moment = self.parser.moment(column, self.text(column))?;
        Ok(moment.map(|moment| to_wire(moment.first)))
    }

    fn method(&self) -> Result<pb::OptInMethod, Fault> {
        let method = by_name(self.text("method"), METHOD_PREFIX, &METHODS);
        method.map(|(_, method)| *method).ok_or_else(|| {
            let known = METHODS.map(|(name, _)| name).join(", ");
            Fault::new("method", format!("must be one of {known}"))
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
}

/// The one of these values that a cell names, in whatever case, with blanks or hyphens in it, and with or
/// without a prefix.
fn by_name<'v, T>(
    cell: &str,
    prefix: &str,
    values: &'v [(&'static str, T)],
) -> Option<&'v (&'static str, T)> {
    let find = |name: &str| values.iter().find(|(value, _)| *value == name);
    // Most files have the names as they are.
    find(cell).or_else(|| {
        let name = cell.to_ascii_lowercase().replace([' ', '-'], "_");
        find(name.strip_prefix(prefix).unwrap_or(&name))
    })
}
