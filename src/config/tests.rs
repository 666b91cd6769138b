use super::*;
use crate::net::socket::Address;
use consentd_core::scope::{Class, ClassSet};

fn file(text: &str) -> Result<Settings, ConfigError> {
    ServeArgs::from_toml(text).unwrap().validate()
}

fn refused(text: &str) -> String {
    match ServeArgs::from_toml(text) {
        Ok(args) => args.validate().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn defaults_are_those_of_the_rules() {
    let settings = file("").unwrap();
    assert_eq!(settings.policy, Policy::default());
    assert_eq!(settings.max_staleness, Duration::from_secs(5));
    assert_eq!(settings.ledger.to_string(), "file:consentd.redb");
    assert_eq!(settings.listeners.listen, [Address::Tcp("127.0.0.1:50051".into())]);
    assert!(settings.limits.workers >= 1 && settings.limits.workers <= 2);
}

#[test]
fn traces_are_off_unless_asked_for() {
    assert!(file("").unwrap().traces.is_none());
    assert!(file("otlp-endpoint = \"none\"\notlp-sample = 1.0").unwrap().traces.is_none());
    let traces = file("otlp-endpoint = \"http://localhost:4317\"").unwrap().traces.unwrap();
    assert!((traces.ratio - 0.01).abs() < f64::EPSILON);
}

#[test]
fn anonymous_roles_are_to_check_and_to_watch_and_no_other() {
    use crate::grpc::Role;
    assert!(file("").unwrap().listeners.anonymous_roles.is_empty());
    let roles = file("anonymous-roles = [\"check\", \"watch\"]").unwrap().listeners.anonymous_roles;
    assert_eq!(roles, [Role::Check, Role::Watch]);
    assert!(refused("anonymous-roles = [\"record\"]").contains("unknown variant `record`"));
}

#[test]
fn flag_overrides_the_file() {
    let limits = LimitArgs { max_batch: Some(7), ..LimitArgs::default() };
    let flags = ServeArgs { limits, ..ServeArgs::default() };
    let weaker =
        ServeArgs::from_toml("max-batch = 9\nworkers = 1\nmax-staleness = \"2s\"").unwrap();
    let settings = flags.or(weaker).validate().unwrap();
    assert_eq!((settings.limits.max_batch, settings.limits.workers), (7, 1));
    assert_eq!(settings.max_staleness, Duration::from_secs(2));
}

#[test]
fn classes_and_keywords_are_read() {
    let settings = file(
        "window-implies = \"utility, service\"\nstale-allow = \"none\"\n\
         [keywords]\ntopics = [\"utility.order_updates\"]\nconfirm = [\"sí\"]\n\
         [[keywords.opt-in]]\nwords = [\"start\"]\ncategory = \"marketing\"\n\
         statement = \"Reply START for Acme's offers on WhatsApp\"\nbusiness-name = \"Acme\"\n",
    )
    .unwrap();
    assert!(settings.policy.window_implies.contains(Class::Utility));
    assert!(!settings.policy.window_implies.contains(Class::Marketing));
    assert_eq!(settings.policy.stale_allow, ClassSet::NONE);
    let keywords = settings.keywords.default;
    assert_eq!(keywords.opt_in.len(), 1);
    assert_eq!(keywords.confirm.unwrap(), ["sí"]);
}

#[test]
fn business_inherits_keywords_and_adds_its_own() {
    let settings = file(
        "[keywords]\ntopics = [\"utility.order_updates\"]\nlanguages = [\"en\"]\n\
         confirm = [\"yes\"]\n\
         [[keywords.opt-in]]\nwords = [\"start\"]\ncategory = \"marketing\"\n\
         statement = \"Reply START for Acme's offers on WhatsApp\"\nbusiness-name = \"Acme\"\n\
         [[keywords.opt-out]]\nscope = \"*\"\nwords = [\"hush\"]\n\
         [keywords.business.\"tienda.mx\"]\nlanguages = [\"es\", \"en\"]\nexcept = [\"ALTO\"]\n\
         topics = [\"marketing.rebajas\"]\n\
         [[keywords.business.\"tienda.mx\".opt-out]]\nscope = \"marketing.rebajas\"\n\
         words = [\"sin rebajas\"]\nlocale = \"es-MX\"\n",
    )
    .unwrap();
    let own = &settings.keywords.business["tienda.mx"];
    assert_eq!(own.languages, ["es", "en"]);
    assert_eq!(own.except, ["ALTO"]);
    assert_eq!(own.topics.len(), 2);
    let words: Vec<_> = own.opt_out.iter().flat_map(|keyword| &keyword.words).collect();
    assert_eq!(words, ["hush", "sin rebajas"]);
    assert_eq!(own.confirm.as_deref(), Some(&["yes".to_owned()][..]));
    assert!(own.opt_in.is_empty(), "the statement names another business");
    assert!(settings.keywords.default.except.is_empty());
    assert_eq!(settings.keywords.default.topics.len(), 1);
}

#[test]
fn invalid_keywords_are_refused() {
    for (text, parts) in [
        ("[keywords]\nbuilt-in = false", ["opts out of everything", "built-in"]),
        ("[keywords]\nexcept = [\"stpo\"]", ["except", "stpo"]),
        ("[keywords]\nlanguages = [\"xx\"]", ["languages", "es, pt"]),
        ("[keywords]\nconfirm = []", ["confirm", "none is listed"]),
        ("[keywords]\nconfirm = [\"👍\"]", ["confirm", "neither a letter"]),
        ("[[keywords.opt-out]]\nscope = \"*\"\nwords = []", ["opt-out", "none is listed"]),
        ("[[keywords.opt-out]]\nscope = \"news\"\nwords = [\"a\"]", ["opt-out", "marketing"]),
        (
            "[[keywords.opt-out]]\nscope = \"*\"\nwords = [\"a\"]\nlocale = \"en_US\"",
            ["locale", "pt-BR"],
        ),
        ("[keywords]\ntopics = [\"utility\"]", ["topics", "<class>.<topic>"]),
        (
            "[[keywords.opt-in]]\nwords = [\"Stop!\"]\ncategory = \"marketing\"\n\
             statement = \"WhatsApp Acme\"\nbusiness-name = \"Acme\"",
            ["opt-in", "opts out"],
        ),
        ("[keywords.business.\"\"]", ["business", "required"]),
        ("[keywords.business.a]\ntopic = []", ["unknown field", "topics"]),
        ("[keywords.business.a]\nbuilt-in = false", ["business.\"a\"", "opts out of everything"]),
        ("[keywords.business.a.business.b]", ["business.\"a\"", "of its own"]),
    ] {
        let said = refused(text);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}

#[test]
fn invalid_setting_is_named() {
    for (text, parts) in [
        ("window = \"25h\"", ["--window", "24h"]),
        ("window-implies = \"news\"", ["--window-implies", "one of marketing"]),
        ("ledger = \"consentd.redb\"", ["--ledger", "file:PATH"]),
        ("ledger = \"redis://h:x\"", ["--ledger", "a port is from 1"]),
        ("ledger-ca-file = \"a\"\nledger = \"redis://h\"", ["--ledger-ca-file", "rediss://"]),
        ("snapshot = \"a\"", ["--snapshot", "Redis"]),
        ("snapshot-every = \"1s\"", ["--snapshot-every", "--snapshot,"]),
        ("ledger = \"redis://h\"\nsnapshot = \"/\"", ["--snapshot", "file's path"]),
        (
            "ledger = \"redis://h\"\nsnapshot = \"a\"\nsnapshot-every = \"1ms\"",
            ["--snapshot-every", "100ms"],
        ),
        ("max-batch = 0", ["--max-batch", "1 or more"]),
        ("max-staleness = \"1ms\"", ["--max-staleness", "10ms"]),
        ("listen = \"none\"", ["--listen", "--unix"]),
        ("listen = \"50051\"", ["--listen", "HOST:PORT"]),
        ("admin = \"unix:/a\"", ["--admin", "HOST:PORT"]),
        ("otlp-endpoint = \"localhost:4317\"", ["--otlp-endpoint", "http://HOST:PORT"]),
        ("otlp-endpoint = \"ftp://c:4317\"", ["--otlp-endpoint", "must be http://HOST:PORT"]),
        ("otlp-sample = 1.1", ["--otlp-sample", "from 0 to 1"]),
        ("otlp-sample = nan", ["--otlp-sample", "from 0 to 1"]),
        ("admin = \"none\"\nadmin-checks = true", ["--admin-checks", "--admin a loopback"]),
        ("max-stalenes = \"1s\"", ["max-stalenes", "max-staleness"]),
        (
            "[[keywords.opt-in]]\nwords = [\"start\"]\ncategory = \"marketing\"\n\
          statement = \"offers\"\nbusiness-name = \"Acme\"",
            ["keywords", "WhatsApp"],
        ),
    ] {
        let said = refused(text);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
