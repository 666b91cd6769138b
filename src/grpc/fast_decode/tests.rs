//! Property tests against prost: whatever bytes are accepted here, prost decodes to the same message.

use proptest::prelude::*;
use prost::Message;

use super::*;
use consentd_core::decision::Decision;
use consentd_core::time::Timestamp;

fn id() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[+0-9a-zA-Zé🙂. ]{0,20}", "[a-z]{120,140}"]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()]
}

/// Most questions name no template.
fn template() -> impl Strategy<Value = Option<pb::Template>> {
    let template = (id(), id()).prop_map(|(name, language)| Some(pb::Template { name, language }));
    prop_oneof![7 => Just(None), 1 => template]
}

prop_compose! {
    fn request()(
        user_id in id(), business_id in id(), category in id(),
        form in prop_oneof![0..4_i32, any::<i32>()], min_revision in number(),
        template in template(),
    ) -> pb::CanSendRequest {
        pb::CanSendRequest { user_id, business_id, category, form, min_revision, template }
    }
}

prop_compose! {
    fn sequence()(sequence in number(), request in prop::option::of(request()))
        -> pb::StreamCanSendRequest {
        pb::StreamCanSendRequest { sequence, request }
    }
}

prop_compose! {
    fn batch()(requests in prop::collection::vec(request(), 0..6)) -> pb::BatchCanSendRequest {
        pb::BatchCanSendRequest { requests }
    }
}

prop_compose! {
    fn filter()(
        business_id in id(), category in id(), form in any::<i32>(),
        user_ids in prop::collection::vec(id(), 0..6), template in template(),
    ) -> pb::FilterRecipientsRequest {
        pb::FilterRecipientsRequest { business_id, category, form, user_ids, template }
    }
}

/// A mutation of a message's bytes: bytes are changed, cut off or inserted; another message follows; or
/// there are unknown fields.
#[derive(Clone, Debug)]
enum Fate {
    Intact,
    Changed(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    PutIn(prop::sample::Index, Vec<u8>),
    Doubled,
    Nonsense(Vec<u8>),
}

fn fate() -> impl Strategy<Value = Fate> {
    let index = any::<prop::sample::Index>;
    let known: &[&[u8]] = &[
        // Unknown fields of every kind, a group in a group, and numbers that are too long.
        &[0x78, 0x05],
        &[0x7a, 0x02, 1, 2],
        &[0x79, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x7d, 0, 0, 0, 0],
        &[0x7b, 0x7b, 0x7c, 0x7c],
        &[0x7c],
        &[0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        &[0x00, 0x01],
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0x0a, 0x01, 0xff],
        &[0x12, 0x00],
        &[0x12, 0x04, 0x0a, 0x02, b'x', b'y'],
    ];
    prop_oneof![
        3 => Just(Fate::Intact),
        3 => (index(), any::<u8>()).prop_map(|(at, to)| Fate::Changed(at, to)),
        1 => index().prop_map(Fate::Cut),
        3 => (index(), prop::sample::select(known))
            .prop_map(|(at, bytes)| Fate::PutIn(at, bytes.to_vec())),
        1 => Just(Fate::Doubled),
        2 => prop::collection::vec(any::<u8>(), 0..24).prop_map(Fate::Nonsense),
    ]
}

fn befallen(message: &impl Message, fate: Fate) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    match fate {
        Fate::Changed(at, to) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        Fate::Intact | Fate::Changed(..) => {}
        Fate::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
        Fate::PutIn(at, more) => {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, more);
        }
        Fate::Doubled => bytes.extend(message.encode_to_vec()),
        Fate::Nonsense(nonsense) => bytes = nonsense,
    }
    bytes
}

/// Whether a message must be read here: it is whole, and names no template.
fn is_intact(fate: &Fate, template: Option<&pb::Template>) -> bool {
    matches!(fate, Fate::Intact | Fate::Doubled) && template.is_none()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn a_question_is_what_prost_reads(message in request(), fate in fate()) {
        let intact = is_intact(&fate, message.template.as_ref());
        let bytes = befallen(&message, fate);
        match RawCheckRequest::read(&bytes) {
            Ok(asked) => {
                let decoded = pb::CanSendRequest::decode(&*bytes).unwrap();
                prop_assert_eq!(asked, RawCheckRequest::from(&decoded));
            }
            Err(FallBackToProst) => prop_assert!(!intact),
        }
    }

    #[test]
    fn a_question_of_a_stream_is_what_prost_reads(message in sequence(), fate in fate()) {
        let asked = message.request.as_ref();
        let intact = is_intact(&fate, asked.and_then(|asked| asked.template.as_ref()));
        let bytes = befallen(&message, fate);
        match RawStreamRequest::read(&bytes) {
            Ok(read) => {
                let decoded = pb::StreamCanSendRequest::decode(&*bytes).unwrap();
                prop_assert_eq!(read, RawStreamRequest::from(&decoded));
            }
            Err(FallBackToProst) => prop_assert!(!intact),
        }
    }

    #[test]
    fn a_batch_is_what_prost_reads(message in batch(), fate in fate()) {
        let mut named = message.requests.iter().filter_map(|asked| asked.template.as_ref());
        let intact = is_intact(&fate, named.next());
        let bytes = befallen(&message, fate);
        match RawCheckRequest::read_batch(&bytes, 100) {
            Ok(batch) => {
                let decoded = pb::BatchCanSendRequest::decode(&*bytes).unwrap();
                prop_assert_eq!(batch, decoded.requests.iter().map(RawCheckRequest::from).collect::<Vec<_>>());
            }
            Err(FallBackToProst) => prop_assert!(!intact),
        }
    }

    #[test]
    fn a_campaign_is_what_prost_reads(message in filter(), fate in fate()) {
        let intact = is_intact(&fate, message.template.as_ref());
        let bytes = befallen(&message, fate);
        let mut users = Vec::new();
        match RawCampaign::read(&bytes, 100, &mut users) {
            Ok(campaign) => {
                let decoded = pb::FilterRecipientsRequest::decode(&*bytes).unwrap();
                prop_assert_eq!(campaign, RawCampaign::from(&decoded));
                prop_assert_eq!(users, decoded.user_ids);
            }
            Err(FallBackToProst) => prop_assert!(!intact),
        }
    }
}

prop_compose! {
    fn answer()(
        reason in prop::sample::select(&Reason::ALL[..]),
        (free_form_allowed, template_allowed) in any::<(bool, bool)>(),
        (window_expire, retry) in any::<(Option<i64>, Option<i64>)>(),
        window in prop::option::of(1_700_000_000_000..1_900_000_000_000_i64),
        revision in prop::sample::select(&[0, 1, 300, u64::MAX][..]),
        staleness in prop::sample::select(&[0, 1, 999_999_999, 7_000_000_001, u64::MAX][..]),
    ) -> CheckResult {
        let time = |millis: i64| Timestamp::saturating_from_millis(millis);
        let window_expire = window.or(window_expire).map(time);
        let retry = retry.map(time);
        let decision =
            Decision { reason, free_form_allowed, template_allowed, window_expire, retry };
        CheckResult { decision, revision, staleness: Duration::from_nanos(staleness), stricter: None }
    }
}

proptest! {
    #[test]
    fn answers_are_written_as_prost_writes_them(
        answers in prop::collection::vec(answer(), 0..8),
    ) {
        let mut results = BatchResponseEncoder::with_capacity(0);
        let mut expected = pb::BatchCanSendResponse::default();
        for answer in &answers {
            use pb::batch_can_send_result::Result as Pb;
            results.put_answer(answer);
            let error = Pb::Error(pb::ItemError { code: 3, ..Default::default() });
            results.put(error.clone());
            for result in [Pb::Response(convert::answer(&RawCheckRequest::default(), answer)), error] {
                expected.results.push(pb::BatchCanSendResult { result: Some(result) });
            }
        }
        prop_assert_eq!(results.into_bytes(), expected.encode_to_vec());
    }
}

#[test]
fn what_names_a_template_is_left_to_prost() {
    let template = Some(pb::Template { name: "a".into(), language: "en".into() });
    let asked = pb::CanSendRequest { template: template.clone(), ..Default::default() };
    assert_eq!(RawCheckRequest::read(&asked.encode_to_vec()), Err(FallBackToProst));
    let campaign = pb::FilterRecipientsRequest { template, ..Default::default() };
    let (bytes, mut users) = (campaign.encode_to_vec(), Vec::new());
    assert_eq!(RawCampaign::read(&bytes, 3, &mut users), Err(FallBackToProst));
}

#[test]
fn as_many_as_may_be_are_read_and_one_more() {
    let batch = |n| pb::BatchCanSendRequest { requests: vec![pb::CanSendRequest::default(); n] };
    let read =
        |n| RawCheckRequest::read_batch(&batch(n).encode_to_vec(), 3).map(|batch| batch.len());
    assert_eq!((read(3), read(4), read(5)), (Ok(3), Ok(4), Err(FallBackToProst)));
    let filter =
        |n| pb::FilterRecipientsRequest { user_ids: vec![String::new(); n], ..Default::default() };
    let read = |n| {
        let (bytes, mut users) = (filter(n).encode_to_vec(), Vec::new());
        RawCampaign::read(&bytes, 3, &mut users).map(|_| users.len())
    };
    assert_eq!((read(3), read(4), read(5)), (Ok(3), Ok(4), Err(FallBackToProst)));
}
