//! Everything about one user, whom to ask again, and what is wrong with such requests.

use super::*;

fn lapsing(category: &str, within: Duration) -> What {
    let What::OptIn(mut opt_in) = opt_in(category) else { unreachable!() };
    opt_in.expire_time = Some((std::time::SystemTime::now() + within).into());
    What::OptIn(opt_in)
}

#[tokio::test]
async fn everything_about_one_user_is_found_over_all_businesses_in_every_notation() {
    for home in Home::both().await {
        home.record("5215512345678", "acme", 3 * DAY, opt_in("marketing")).await;
        home.record("+52 55 1234 5678", "Acme", 2 * DAY, letter("*")).await;
        home.record("5215512345678", "shop", 2 * DAY, inbound("")).await;
        home.record("5215512345679", "acme", DAY, opt_in("utility")).await;
        home.record("5215512345679", "other", DAY, opt_in("utility")).await;
        let text = home.told(0, &["subject", "525512345678"]);
        for part in [
            "acme: opted in to marketing; opted out of nothing; last wrote never\n",
            "\"Yes to messages from Acme on WhatsApp\"",
            "Acme: opted in to nothing; opted out of *; last wrote never\n",
            "shop: opted in to nothing; opted out of nothing; last wrote 2",
            "3 businesses have something about this user\n",
        ] {
            assert!(text.contains(part), "{text}\nhas no {part:?}");
        }
        assert!(!text.contains("other") && !text.contains("5679"), "{text}");
        let json = home.json(0, &["subject", "525512345678"]);
        let pairs: Vec<_> =
            json.iter().filter_map(|line| line["pair"]["businessId"].as_str()).collect();
        assert_eq!(pairs, ["Acme", "acme", "shop"]);
        let events = json.iter().filter(|line| line["listed"].get("event").is_some()).count();
        let checked = json.iter().filter(|line| line["listed"].get("chain").is_some()).count();
        assert_eq!((events, checked), (3, 3));
        let nobody = home.told(0, &["subject", "US.1"]);
        assert_eq!(nobody, "no business of this ledger has anything about this user\n");
        assert!(home.run(&["subject", "+"]).2.contains("user_id: "));
        assert!(home.run(&["subject", "1", "--business", "a\tb"]).2.contains("business_ids: "));
    }
}

#[tokio::test]
async fn a_user_whose_events_are_all_gone_is_found_by_the_record() {
    let home = Home::redis().await;
    home.record("US.1", "acme", DAY, inbound("")).await;
    for (hash, field, value) in home.entries() {
        let digest = Sha256::digest(&value[9..]);
        home.put(&hash, &field, &[&value[..8], &[2], &digest[..]].concat());
    }
    let found = |flags: &[&str]| home.told(0, &[&["subject", "US.1"], flags].concat());
    // Nothing names the business any more, but who asks may.
    assert!(found(&[]).starts_with("no business"), "{}", found(&[]));
    let part = "chain checked: intact, 1 event: 0 kept, 1 gone by retention";
    assert!(found(&["--business", "acme", "--business", "none"]).contains(part));
    // Somebody else's event names it.
    home.record("US.2", "acme", DAY, opt_in("marketing")).await;
    assert!(found(&[]).contains(part), "{}", found(&[]));
}

#[tokio::test]
async fn opt_ins_that_lapse_are_listed_while_they_stand() {
    for home in Home::both().await {
        home.record("US.soon", "acme", DAY, lapsing("marketing", 10 * DAY)).await;
        home.record("+1 555 012 3456", "shop, \"the\"", DAY, lapsing("utility.a", 20 * DAY)).await;
        home.record("US.later", "acme", DAY, lapsing("marketing", 40 * DAY)).await;
        home.record("US.never", "acme", DAY, opt_in("marketing")).await;
        home.record("US.out", "acme", 2 * DAY, lapsing("marketing", 10 * DAY)).await;
        home.record("US.out", "acme", DAY, letter("marketing")).await;
        home.record("US.renewed", "acme", 2 * DAY, lapsing("marketing.b", 10 * DAY)).await;
        home.record("US.renewed", "acme", DAY, opt_in("marketing")).await;
        let What::OptIn(mut pending) = opt_in("utility") else { unreachable!() };
        pending.pending = true;
        home.record("US.waits", "acme", DAY, What::OptIn(pending)).await;
        let mut past = lapsing("service", Duration::ZERO);
        if let What::OptIn(opt_in) = &mut past {
            opt_in.expire_time = Some(ago(DAY));
        }
        home.record("US.lapsed", "acme", 2 * DAY, past).await;

        let rows = |flags: &[&str]| {
            let text = home.told(0, &[&["due"], flags].concat());
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let mut rows: Vec<Vec<String>> = reader
                .records()
                .map(|row| row.unwrap().iter().map(str::to_owned).collect())
                .collect();
            rows.sort();
            let short = |row: &Vec<String>| format!("{}|{}|{}|{}", row[0], row[1], row[2], row[5]);
            rows.iter().map(short).collect::<Vec<_>>()
        };
        let (soon, shop) =
            ("US.soon|acme|marketing|opted_in", "+1 555 012 3456|shop, \"the\"|utility.a|opted_in");
        assert_eq!(rows(&[]), [shop, soon]);
        assert_eq!(rows(&["--within", "15d"]), [soon]);
        assert_eq!(rows(&["--within", "60d", "--business", "shop, \"the\""]), [shop]);
        assert_eq!(rows(&["--within", "1h", "--pending"]), ["US.waits|acme|utility|pending"]);
        assert_eq!(rows(&["--lapsed"]), ["US.lapsed|acme|service|lapsed"]);
        assert_eq!(rows(&["--lapsed", "--within", "1h"]), Vec::<String>::new());
        let json = home.json(0, &["due", "--within", "15d"]);
        assert_eq!((json.len(), &json[0]["userId"]), (1, &"US.soon".into()));
        assert_eq!(json[0]["category"], "marketing");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_field_by_field() {
    use pb::check_events_response::{Finding, Result as Found};
    let home = Home::embedded().await;
    home.record("US.1", "acme", DAY, opt_in("marketing")).await;
    let mut records = home.sidecar.records().await;
    let exports = records.export_events(pb::ExportEventsRequest::default()).await.unwrap();
    let good = exports.into_inner().message().await.unwrap().unwrap();
    assert_eq!((good.number, good.chain_head.len()), (1, 32));
    let of = |edit: &dyn Fn(&mut pb::ExportEventsResponse)| {
        let mut edited = good.clone();
        edit(&mut edited);
        Some(edited)
    };
    let asked = [
        Some(good.clone()),
        None,
        of(&|exported| exported.event = None),
        of(&|exported| exported.number = 0),
        of(&|exported| exported.number = 2),
        of(&|exported| exported.number = u64::MAX),
        of(&|exported| exported.chain_head.truncate(31)),
        of(&|exported| exported.chain_head[0] ^= 1),
        of(&|exported| exported.record_time = None),
        of(&|exported| exported.revision = 99),
    ];
    let requests: Vec<_> = asked
        .into_iter()
        .zip(7..)
        .map(|(exported, sequence)| pb::CheckEventsRequest { sequence, exported })
        .collect();
    let answers = records.check_events(tokio_stream::iter(requests)).await.unwrap();
    let (mut answers, mut found) = (answers.into_inner(), Vec::new());
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.sequence, 7 + u64::try_from(found.len()).unwrap());
        found.push(match answer.result.unwrap() {
            Found::Finding(finding) => Finding::try_from(finding).unwrap().as_str_name().to_owned(),
            Found::Error(error) => error.field,
        });
    }
    let fields = [
        "FINDING_SAME",
        "event.user_id",
        "event.user_id",
        "exported.number",
        "FINDING_MISSING",
        "FINDING_MISSING",
        "exported.chain_head",
        "FINDING_CHANGED",
        "FINDING_EXPORT_CHANGED",
        "FINDING_SAME",
    ];
    assert_eq!(found, fields);

    let business_ids = vec!["acme".into(), String::new()];
    let user = pb::ListUserEventsRequest { user_id: "+".into(), business_ids };
    let mut refused = records.list_user_events(user).await.unwrap().into_inner();
    let refused = refused.message().await.unwrap_err();
    for field in ["user_id: ", "business_ids: "] {
        assert!(refused.message().contains(field), "{refused:?}");
    }
    let time = prost_types::Timestamp { seconds: -1, nanos: 0 };
    let due = pb::ListDueOptInsRequest {
        business_id: "a\nb".into(),
        since_time: Some(time),
        until_time: Some(time),
        pending: false,
    };
    let refused = records.list_due_opt_ins(due).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    for field in ["business_id: ", "since_time: ", "until_time: "] {
        assert!(refused.message().contains(field), "{refused:?}");
    }
}
