//! The encoding of an update, which is the same in every ledger.

use super::codec;
use super::history::HistoryItem;
use super::{LogBody, Update};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, extend_chain, sha256};

/// An update, encoded before it queues for the writer, so that the writer has less to do.
pub(super) struct EncodedUpdate {
    /// The encoded record; its history's length and chain include `items`.
    pub(super) record: Vec<u8>,
    /// The log entry's body.
    pub(super) body: LogBody,
    /// The same, encoded.
    pub(super) log: Vec<u8>,
    /// The number of entries that the history had before, including erased and expired ones.
    pub(super) history_len_before: u64,
    /// The new items of the history.
    pub(super) items: Vec<HistoryItem<'static>>,
    /// The statements that the items refer to, by their digests.
    pub(super) statements: Vec<([u8; 32], String)>,
    /// If these are the first items since an erasure: the number of erased entries, and the chain's
    /// head after them.
    pub(super) restart: Option<(u64, ChainHead)>,
    /// Whether the pair's history is deleted.
    pub(super) erases: bool,
}

impl EncodedUpdate {
    /// Encodes the update of a pair.
    pub(super) fn new(key: Key, update: Update) -> Self {
        let erases = update.erases();
        let mut record = update.record;
        let restart = record.is_without_history().then(|| record.history_start());
        let history_len_before = record.history_len;
        let mut items = Vec::with_capacity(update.history.len());
        let mut statements = Vec::new();
        for entry in &update.history {
            let bytes = codec::encode_history(entry);
            record.chain = extend_chain(&record.chain, &sha256(&bytes));
            record.history_len = record.history_len.saturating_add(1);
            let statement = codec::statement_of(entry);
            statements.extend(statement.map(|(digest, text)| (digest, text.to_owned())));
            let is_permanent = entry.is_kept_for_good();
            let make = if is_permanent { HistoryItem::Permanent } else { HistoryItem::Perishable };
            items.push(make(bytes.into()));
        }
        let encoded = codec::encode_record(&record);
        let body = LogBody {
            key,
            user_id: update.user_id,
            business_id: update.business_id,
            record: Ok(record),
            record_time: update.record_time,
        };
        let log = codec::encode_log(&body, &encoded);
        Self { record: encoded, body, log, history_len_before, items, statements, restart, erases }
    }
}
