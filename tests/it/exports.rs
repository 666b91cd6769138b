//! Exports: they have all that the ledger has, whatever else the sidecar is doing.

use std::time::Duration;

use consentd::grpc::pb;
use tonic::{Code, Request};

use crate::sidecar::{Sidecar, event, ledger_in, opt_out, run};

#[tokio::test]
async fn export_while_the_table_is_loaded_has_what_the_ledger_has() {
    let folder = tempfile::tempdir().unwrap();
    // So many pairs that they are still being loaded when the export is asked for.
    let sidecar = Sidecar::start(&ledger_in(folder.path()), &["--synthetic", "5000000"]);
    let mut records = sidecar.records().await;
    // The event is in the ledger at once, and is acknowledged only when the table has it.
    let mut stop = Request::new(event("1", "acme", opt_out("*")));
    stop.set_timeout(Duration::from_millis(500));
    let unacknowledged = records.record_event(stop).await.map(|_| ());
    assert_eq!(unacknowledged.map_err(|status| status.code()), Err(Code::DeadlineExceeded));
    let mut export =
        records.export_events(pb::ExportEventsRequest::default()).await.unwrap().into_inner();
    let first = export.message().await.unwrap().expect("the event");
    assert_eq!(first.event.unwrap().user_id, "1");
    assert_eq!(export.message().await.unwrap(), None);
    let (code, printed, error) = run(&["export", "--addr", &sidecar.record]);
    assert_eq!((code, printed.lines().count()), (0, 1), "{printed}{error}");
}
