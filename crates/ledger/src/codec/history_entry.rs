//! The encoding of history entries. Their bytes are what the hash chain of a history is over, so that those of an
//! event that is in a ledger never change.

use prost::Message as _;

use super::{encode_number, number_of, optional, pb};
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::record::{HistoryEntry, sha256};
use consentd_core::scope::{Class, Scope};
use consentd_core::time::Timestamp;

/// The format of history entries without numbers.
const PLAIN_ENTRY: u32 = 1;

/// The newest format of history entries: a preference or failure at a known number.
const NUMBERED_ENTRY: u32 = 2;

/// Encodes a history entry, with its statement's digest in place of the statement.
pub(crate) fn encode_history(entry: &HistoryEntry) -> Vec<u8> {
    use pb::history_entry::What as Pb;
    let what = match &entry.what {
        What::OptIn { category, evidence, expire, pending } => Pb::OptIn(pb::OptIn {
            category: category.to_string(),
            method: encode_method(evidence.method),
            statement: statement_digest(evidence).map(|digest| digest.to_vec()).unwrap_or_default(),
            business_name: evidence.business_name.clone(),
            locale: evidence.locale.clone(),
            reference: evidence.reference.clone(),
            expire: expire.map(Timestamp::as_millis),
            pending: *pending,
            confirmation: evidence.confirmation.clone(),
            phone_number_id: encode_number(evidence.phone_number_id.as_ref()),
            statement_names: u32::from(evidence.statement_names == StatementNames::Business),
        }),
        What::OptOut { scope, reference } => {
            Pb::OptOut(pb::OptOut { scope: scope.to_string(), reference: reference.clone() })
        }
        What::Inbound { message_id, text: _ } => {
            Pb::Inbound(pb::Inbound { message_id: message_id.clone() })
        }
        What::Platform { stopped, phone_number_id } => Pb::Platform(pb::Platform {
            stopped: *stopped,
            phone_number_id: encode_number(phone_number_id.as_ref()),
        }),
        What::Failure { code, phone_number_id } => Pb::Failure(pb::FailureCode {
            code: *code,
            phone_number_id: encode_number(phone_number_id.as_ref()),
        }),
        What::Suppression { suppressed, reference } => Pb::Suppression(pb::Suppression {
            suppressed: *suppressed,
            reference: reference.clone(),
        }),
        What::Link { other_user_id, moved } => {
            Pb::Link(pb::Link { other_user_id: other_user_id.clone(), moved: *moved })
        }
        What::TemplateCategory { category, lift, reference } => {
            Pb::TemplateCategory(pb::TemplateCategory {
                category: category.name().to_owned(),
                lift: lift.map(Timestamp::as_millis),
                reference: reference.clone(),
            })
        }
        What::TemplateRestriction { restricted, until, reference } => {
            Pb::TemplateRestriction(pb::TemplateRestriction {
                restricted: *restricted,
                until: until.map(Timestamp::as_millis),
                reference: reference.clone(),
            })
        }
    };
    pb::HistoryEntry {
        format: if is_numbered(&entry.what) { NUMBERED_ENTRY } else { PLAIN_ENTRY },
        user_id: entry.user_id.clone(),
        business_id: entry.business_id.clone(),
        time: entry.time.as_millis(),
        record_time: entry.record_time.as_millis(),
        what: Some(what),
    }
    .encode_to_vec()
}

/// Whether an event is of one of the business's numbers.
pub(super) fn is_numbered(what: &What) -> bool {
    match what {
        What::Platform { phone_number_id, .. } | What::Failure { phone_number_id, .. } => {
            phone_number_id.is_some()
        }
        What::OptIn { evidence, .. } => evidence.phone_number_id.is_some(),
        _ => false,
    }
}

/// The statement of an entry, if it has one, and the statement's digest.
pub(crate) fn statement_of(entry: &HistoryEntry) -> Option<([u8; 32], &str)> {
    match &entry.what {
        What::OptIn { evidence, .. } => {
            Some((statement_digest(evidence)?, evidence.statement.as_str()))
        }
        _ => None,
    }
}

/// The digest of the statement of an encoded entry, if it has one.
pub(crate) fn statement_digest_of(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut found = None;
    let note = |digest: &[u8]| {
        found = digest.try_into().ok();
        Some(String::new())
    };
    let _ = decode_history(bytes, note);
    found
}

fn statement_digest(evidence: &Evidence) -> Option<[u8; 32]> {
    (!evidence.statement.is_empty()).then(|| sha256(evidence.statement.as_bytes()))
}

/// Decodes a history entry; `text` looks up a statement by its digest. Returns `None` if the bytes are
/// invalid or the statement is not found.
pub(crate) fn decode_history(
    bytes: &[u8],
    text: impl FnOnce(&[u8]) -> Option<String>,
) -> Option<HistoryEntry> {
    use pb::history_entry::What as Pb;
    let entry = pb::HistoryEntry::decode(bytes).ok()?;
    if entry.format > NUMBERED_ENTRY {
        return None;
    }
    let what = match entry.what? {
        Pb::OptIn(opt_in) => What::OptIn {
            category: Scope::parse(&opt_in.category).ok()?,
            evidence: Evidence {
                method: decode_method(opt_in.method)?,
                statement: match &*opt_in.statement {
                    [] => String::new(),
                    digest => text(digest)?,
                },
                business_name: opt_in.business_name,
                locale: opt_in.locale,
                reference: opt_in.reference,
                confirmation: opt_in.confirmation,
                phone_number_id: number_of(&opt_in.phone_number_id)?,
                statement_names: match opt_in.statement_names {
                    0 => StatementNames::WhatsappAndBusiness,
                    1 => StatementNames::Business,
                    _ => return None,
                },
            },
            expire: optional(opt_in.expire)?,
            pending: opt_in.pending,
        },
        Pb::OptOut(opt_out) => {
            What::OptOut { scope: Scope::parse(&opt_out.scope).ok()?, reference: opt_out.reference }
        }
        Pb::Inbound(inbound) => {
            What::Inbound { message_id: inbound.message_id, text: String::new() }
        }
        Pb::Platform(platform) => What::Platform {
            stopped: platform.stopped,
            phone_number_id: number_of(&platform.phone_number_id)?,
        },
        Pb::Failure(failure) => What::Failure {
            code: failure.code,
            phone_number_id: number_of(&failure.phone_number_id)?,
        },
        Pb::Suppression(suppression) => What::Suppression {
            suppressed: suppression.suppressed,
            reference: suppression.reference,
        },
        Pb::Link(link) => What::Link { other_user_id: link.other_user_id, moved: link.moved },
        Pb::TemplateCategory(template) => What::TemplateCategory {
            category: Class::from_name(&template.category)?,
            lift: optional(template.lift)?,
            reference: template.reference,
        },
        Pb::TemplateRestriction(account) => What::TemplateRestriction {
            restricted: account.restricted,
            until: optional(account.until)?,
            reference: account.reference,
        },
    };
    Some(HistoryEntry {
        user_id: entry.user_id,
        business_id: entry.business_id,
        time: Timestamp::from_millis(entry.time)?,
        record_time: Timestamp::from_millis(entry.record_time)?,
        what,
    })
}

/// Methods and their numbers, which are the same as in the public API.
const METHODS: [(u32, Method); 6] = [
    (1, Method::Sms),
    (2, Method::Website),
    (3, Method::Whatsapp),
    (4, Method::Phone),
    (5, Method::InPerson),
    (6, Method::WhatsappSignup),
];

fn encode_method(method: Method) -> u32 {
    METHODS.iter().find(|(_, known)| *known == method).map_or(0, |(number, _)| *number)
}

fn decode_method(number: u32) -> Option<Method> {
    METHODS.iter().find(|(known, _)| *known == number).map(|(_, method)| *method)
}
