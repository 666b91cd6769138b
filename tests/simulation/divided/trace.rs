//! What happens to a ledger in several partitions, in words, for `CONSENTD_TRACE`.

use super::world::Happening;

/// A step.
pub fn told(happening: &Happening) -> String {
    match happening {
        Happening::AskedPage(at, id, _) => format!("{at}: page {id} is asked for"),
        Happening::AskedBucket(at, id, _) => format!("{at}: bucket {id} is asked for"),
        Happening::Confirmed(at, term, id, ..) => {
            format!("{at}: who owns it, since the owner of term {term} gave page {id}?")
        }
        Happening::Brought(at, life, brought) => {
            format!("{at}: {}", crate::trace::told_brought(*life, brought))
        }
        Happening::Saved(at) => format!("{at}: saved"),
        Happening::Held => "other businesses may be held".to_owned(),
        Happening::Noticed(process) => format!("process {process} sees a loss"),
        Happening::LooksForLost(process, _) => format!("process {process} looks for what is lost"),
        Happening::Recorder(index, _, step) => format!("recorder {index}: {}", step.name()),
        Happening::Synced(at) => format!("{at}: synced"),
        Happening::Check(user) => format!("check {user}"),
        Happening::Fault => "fault due".to_owned(),
        Happening::Promoted(at, _) => format!("{at}: the replica is promoted"),
        Happening::Migrated(at, _, completed) => format!("{at}: migrated {completed}"),
        Happening::TargetLost(at, _) => format!("{at}: the target is lost"),
        Happening::Restored(at) => format!("{at}: restored"),
        Happening::Mended(at) => format!("{at}: the wire carries again"),
    }
}
