//! What a statement must name: WhatsApp and the business, or by configuration the business alone.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::consent_event::What;
use tonic::Code;

use crate::sidecar::{Sidecar, event, ledger_in, question, run};

const USER: &str = "15550100001";
const GENERAL: [&str; 2] = ["--statement-names", "business"];

fn opt_in(statement: &str) -> pb::RecordEventRequest {
    let evidence = pb::Evidence {
        method: pb::OptInMethod::Website.into(),
        statement: statement.into(),
        business_name: "Acme".into(),
        // The server sets the rule under which it is taken, whatever a request says.
        statement_names: pb::StatementNames::Business.into(),
        ..pb::Evidence::default()
    };
    let opt_in = pb::OptIn {
        category: "marketing".into(),
        evidence: Some(evidence),
        ..pb::OptIn::default()
    };
    let mut request = event(USER, "acme", What::OptIn(opt_in));
    request.request_id = statement.into();
    request
}

async fn taken(sidecar: &Sidecar, statement: &str) -> Result<bool, Code> {
    let recorded = sidecar.records().await.record_event(opt_in(statement)).await;
    recorded.map(|answer| answer.into_inner().applied).map_err(|status| status.code())
}

/// Under which rules the statements of the user's opt-ins were taken, and the whole printed history.
fn rules_of(sidecar: &Sidecar) -> (Vec<String>, String) {
    let (code, printed, said) = run(&["history", USER, "acme", "--json", "--addr", &sidecar.grpc]);
    assert_eq!(code, 0, "{said}");
    let rule = |line: &str| {
        let listed: serde_json::Value = serde_json::from_str(line).unwrap();
        let rule = listed.pointer("/event/optIn/evidence/statementNames")?;
        Some(rule.as_str().unwrap().to_owned())
    };
    let rules = printed.lines().filter_map(rule).collect();
    let (code, printed, said) = run(&["history", USER, "acme", "--addr", &sidecar.grpc]);
    assert_eq!(code, 0, "{said}");
    (rules, printed)
}

const BY_BOTH: &str = "STATEMENT_NAMES_UNSPECIFIED";
const BY_BUSINESS: &str = "STATEMENT_NAMES_BUSINESS";
const SPECIFIC: &str = "Yes, send me offers from Acme on WhatsApp";
const GENERALLY: &str = "Yes, I want to hear from Acme";
const NOT_THE_BUSINESS: &str = "Yes, send me offers on WhatsApp";

#[tokio::test]
async fn statement_must_name_whatsapp_by_default_and_the_business_always() {
    let folder = tempfile::tempdir().unwrap();
    {
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        assert_eq!(taken(&sidecar, GENERALLY).await, Err(Code::InvalidArgument));
        assert_eq!(taken(&sidecar, NOT_THE_BUSINESS).await, Err(Code::InvalidArgument));
        assert_eq!(taken(&sidecar, SPECIFIC).await, Ok(true));
        let (rules, printed) = rules_of(&sidecar);
        assert_eq!(rules, [BY_BOTH]);
        assert!(!printed.contains("need not name"), "{printed}");
    }
    let sidecar = Sidecar::live(folder.path(), &GENERAL).await;
    assert_eq!(taken(&sidecar, NOT_THE_BUSINESS).await, Err(Code::InvalidArgument));
    assert_eq!(taken(&sidecar, "Yes").await, Err(Code::InvalidArgument));
    assert_eq!(taken(&sidecar, GENERALLY).await, Ok(true));
    // A retry of what was taken under the other rule is the same request.
    assert_eq!(taken(&sidecar, SPECIFIC).await, Ok(true));
    let (rules, printed) = rules_of(&sidecar);
    assert_eq!(rules, [BY_BOTH, BY_BUSINESS], "a retry records nothing");
    assert_eq!(printed.matches("need not name WhatsApp").count(), 1, "{printed}");
    assert!(printed.contains("chain checked: intact"), "{printed}");
    let asked = question(USER, "acme", "marketing");
    let answer = sidecar.checks().await.can_send(asked).await.unwrap().into_inner();
    assert_eq!(answer.reason(), Reason::OptedIn);
}

#[tokio::test]
async fn import_is_held_to_the_rule_of_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let general = Sidecar::live(folder.path(), &GENERAL).await;
    assert_eq!(taken(&general, GENERALLY).await, Ok(true));
    let export = folder.path().join("all.ndjson").display().to_string();
    let (code, _, said) = run(&["export", "--output", &export, "--addr", &general.grpc]);
    assert_eq!(code, 0, "{said}");
    let (code, said, _) = run(&["verify-export", &export, "--addr", &general.grpc]);
    assert_eq!(code, 0, "{said}");
    let text = std::fs::read_to_string(&export).unwrap();
    let forged = folder.path().join("forged.ndjson").display().to_string();
    let rule = format!(r#","statementNames":"{BY_BUSINESS}""#);
    assert!(text.contains(&rule), "{text}");
    std::fs::write(&forged, text.replace(&rule, "")).unwrap();
    let (code, said, _) = run(&["verify-export", &forged, "--addr", &general.grpc]);
    assert_eq!(code, 1, "the rule is part of the entry: {said}");

    let default = tempfile::tempdir().unwrap();
    let default = Sidecar::live(default.path(), &[]).await;
    let (code, printed, said) = run(&["import", &export, "--addr", &default.grpc]);
    assert_eq!(code, 1, "{printed}{said}");
    assert!(said.contains("WhatsApp"), "{said}");
    let (code, printed, said) = run(&["import", &export, "--dry-run"]);
    assert_eq!(code, 1, "{printed}{said}");
    let (code, printed, said) = run(&["import", &export, "--dry-run", GENERAL[0], GENERAL[1]]);
    assert_eq!(code, 0, "{printed}{said}");

    let other = tempfile::tempdir().unwrap();
    let other = Sidecar::live(other.path(), &GENERAL).await;
    // The file's own word on the rule counts for nothing.
    let (code, printed, said) = run(&["import", &forged, "--addr", &other.grpc]);
    assert_eq!(code, 0, "{printed}{said}");
    assert_eq!(rules_of(&other).0, [BY_BUSINESS]);
}

#[tokio::test]
async fn unknown_rule_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let said = Sidecar::try_start(&ledger_in(folder.path()), &["--statement-names", "nothing"]);
    let Err(said) = said else { panic!("it started") };
    assert!(said.contains("--statement-names"), "{said}");
    assert!(said.contains("whatsapp-and-business or business"), "{said}");
}

#[tokio::test]
async fn keyword_that_opts_in_is_held_to_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("consentd.toml");
    let keyword = |statement: &str| {
        format!(
            "[[keywords.opt-in]]\nwords = [\"join\"]\ncategory = \"marketing\"\n\
             statement = \"{statement}\"\nbusiness-name = \"Acme\"\n"
        )
    };
    std::fs::write(&config, keyword(GENERALLY)).unwrap();
    let config_flags = ["--config", config.to_str().unwrap()];
    let ledger = ledger_in(folder.path());
    let Err(said) = Sidecar::try_start(&ledger, &config_flags) else { panic!("it started") };
    assert!(said.contains("WhatsApp"), "{said}");
    {
        let sidecar = Sidecar::live(folder.path(), &[config_flags, GENERAL].concat()).await;
        let mut joins = event(USER, "acme", crate::sidecar::inbound("join"));
        joins.request_id = "1".into();
        sidecar.records().await.record_event(joins).await.unwrap();
        assert_eq!(rules_of(&sidecar).0, [BY_BUSINESS]);
    }
    // The file may say which rule it is, and still the business must be named.
    let names = format!("statement-names = \"business\"\n{}", keyword(NOT_THE_BUSINESS));
    std::fs::write(&config, names).unwrap();
    let Err(said) = Sidecar::try_start(&ledger, &config_flags) else { panic!("it started") };
    assert!(said.contains("business_name"), "{said}");
}
