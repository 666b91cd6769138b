use super::*;

fn read(url: &str) -> Target {
    url.parse().unwrap_or_else(|wrong| panic!("{url}: {wrong}"))
}

fn refused(url: &str) -> String {
    url.parse::<Target>().map(|target| target.describe().to_owned()).unwrap_err().to_string()
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp(host.into(), port)
}

fn given(target: &Target) -> (Option<&str>, Option<&str>) {
    let password = match &target.credentials.password {
        Password::Given(secret) => Some(secret.reveal()),
        _ => None,
    };
    (target.credentials.user.as_deref(), password)
}

#[test]
fn url_is_parsed_in_the_usual_notations() {
    for (url, address, database, described) in [
        ("redis://h", tcp("h", 6379), 0, "redis://h:6379"),
        ("redis://h/", tcp("h", 6379), 0, "redis://h:6379"),
        ("REDIS://h:1/0", tcp("h", 1), 0, "redis://h:1"),
        ("redis://10.0.0.1:7000/15", tcp("10.0.0.1", 7000), 15, "redis://10.0.0.1:7000/15"),
        ("redis://[::1]:7/2", tcp("::1", 7), 2, "redis://[::1]:7/2"),
        ("redis://[::1]", tcp("::1", 6379), 0, "redis://[::1]:6379"),
        (
            "rediss://u:p@r.example.com",
            tcp("r.example.com", 6379),
            0,
            "rediss://r.example.com:6379",
        ),
        ("valkey://h", tcp("h", 6379), 0, "redis://h:6379"),
        ("redis+unix:///r/s", Address::Unix("/r/s".into()), 0, "redis+unix:///r/s"),
        ("redis+unix:/r/s?db=3", Address::Unix("/r/s".into()), 3, "redis+unix:///r/s?db=3"),
        ("unix:///r/s%20t", Address::Unix("/r/s t".into()), 0, "redis+unix:///r/s t"),
        ("redis+unix://u:p@/r/s", Address::Unix("/r/s".into()), 0, "redis+unix:///r/s"),
    ] {
        let target = read(url);
        assert_eq!(target.endpoint, Endpoint::Server(address), "{url}");
        assert_eq!((target.database, target.describe()), (database, described), "{url}");
        assert_eq!(target.tls.is_some(), url.starts_with("rediss"), "{url}");
    }
}

#[test]
fn url_of_sentinels_has_the_name_of_the_primary() {
    let target = read("redis+sentinel://u:p@a,b:1,a:26379,[::1]/my%2Dmaster/2");
    let Endpoint::Sentinels { sentinels, master, credentials } = &target.endpoint else { panic!() };
    assert_eq!(sentinels[..], [tcp("a", 26379), tcp("b", 1), tcp("::1", 26379)]);
    assert_eq!((master.as_str(), credentials), ("my-master", &Credentials::default()));
    assert_eq!((given(&target), target.database), ((Some("u"), Some("p")), 2));
    let described = "redis+sentinel://a:26379,b:1,[::1]:26379/my-master/2";
    assert_eq!(target.describe(), described);
    assert!(target.topology() == Topology::Sentinels && target.tls.is_none());
    assert!(read("rediss+sentinel://a/m").tls.is_some());
}

#[test]
fn url_of_a_cluster_has_nodes_and_no_database() {
    let target = read("redis+cluster://u:p@a,b:7001,a:6379,[::1]:7002/0");
    let nodes = vec![tcp("a", 6379), tcp("b", 7001), tcp("::1", 7002)];
    assert_eq!(target.endpoint, Endpoint::Cluster(nodes));
    assert_eq!((given(&target), target.topology()), ((Some("u"), Some("p")), Topology::Cluster));
    assert_eq!(target.describe(), "redis+cluster://a:6379,b:7001,[::1]:7002");
    assert!(target.tls.is_none() && read("rediss+cluster://a").tls.is_some());
    let database = TargetOptions { database: Some(1), ..TargetOptions::default() };
    let refused = Target::new("redis+cluster://a", database).unwrap_err();
    assert_eq!((refused.setting, refused.why), ("--ledger-database", TargetError::ClusterDatabase));
}

#[test]
fn credentials_are_decoded_and_never_shown() {
    let target = read("redis://us%40er:hunter2%3A%2F%25@h");
    assert_eq!(given(&target), (Some("us@er"), Some("hunter2:/%")));
    assert_eq!(given(&read("redis://:hunter2@h")), (None, Some("hunter2")));
    assert_eq!(given(&read("redis://user@h")), (Some("user"), None));
    assert_eq!(given(&read("redis://u:hun@ter2@h")), (Some("u"), Some("hun@ter2")));
    let shown = format!("{target:?} {target} {:?} {:?}", target.credentials, target.endpoint);
    assert!(!shown.contains("hunter2"), "{shown}");
    for wrong in [
        "redis://u:hunter2",
        "redis://u:hunter2@",
        "redis://u:/hunter2@h",
        "redis://u:?hunter2@h",
        "redis://u:#hunter2@h",
        "redis://:50%hunter2@h",
        "redis://u:hunter2@h:port",
        "redis://u:hunter2@h h",
        "redis://u:hunter2@h/db",
        "redis://u:hunter2@h?password=hunter2",
        "redis+unix://u:hunter2@r/s",
        "redis+unix:/r/s?password=hunter2",
        "redis+sentinel://u:hunter2@h",
        "hunter2://u:hunter2@h",
        "http://u:hunter2@h",
        "redis://u:hunter2@a,b",
        "redis:u:hunter2@a",
    ] {
        let said = refused(wrong);
        assert!(!said.contains("hunter2"), "{wrong}: {said}");
        let debugged = format!("{:?}", wrong.parse::<Target>());
        assert!(!debugged.contains("hunter2"), "{wrong}: {debugged}");
    }
}

#[test]
fn invalid_url_is_rejected_with_a_remedy() {
    for (url, part) in [
        ("consentd.redb", "redis://HOST:PORT"),
        ("http://h", "redis+sentinel://HOST:PORT"),
        ("redis:h", "redis://HOST:PORT"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://h:0", "a port is from 1 to 65535"),
        ("redis://h:66000", "a port is from 1 to 65535"),
        ("redis://h:+1", "a port is from 1 to 65535"),
        ("redis://::1", "names no host"),
        ("redis://[::1", "in brackets"),
        ("redis://h/one", "/N"),
        ("redis://h/1/2", "/N"),
        ("redis://h/+1", "/N"),
        ("redis://h/70000", "65535"),
        ("redis://a,b", "redis+sentinel://"),
        ("redis://:pa/ss@h", "%2F"),
        ("redis://h?db=1", "/N"),
        ("redis+unix://r/s", "whole path"),
        ("redis+unix:", "whole path"),
        ("redis+unix:/r/s?x=1", "?db=N"),
        ("redis+sentinel://a,b", "/mymaster"),
        ("redis+sentinel://a,b/", "/mymaster"),
        ("redis+sentinel://a,/m", "names no host"),
        ("redis+cluster://a,b/1", "database 0 alone"),
        ("redis+cluster://a,,b", "names no host"),
        ("redis://u:5%z@h", "%25"),
    ] {
        let said = refused(url);
        assert!(said.contains(part), "{url}: {said}");
    }
    let many = (0..=MAX_NODES).map(|n| format!("h{n}")).collect::<Vec<_>>().join(",");
    assert!(refused(&format!("redis+sentinel://{many}/m")).contains("more than 32"));
}

#[test]
fn settings_that_contradict_the_url_are_rejected() {
    let file = || Some(PathBuf::from("/f"));
    let options = TargetOptions::default;
    for (url, options, setting, part) in [
        (
            "redis://u@h",
            TargetOptions { user: Some("v".into()), ..options() },
            "--ledger-user",
            "twice",
        ),
        (
            "redis://:p@h",
            TargetOptions { password_file: file(), ..options() },
            "--ledger-password-file",
            "twice",
        ),
        (
            "redis://h/1",
            TargetOptions { database: Some(2), ..options() },
            "--ledger-database",
            "twice",
        ),
        (
            "redis://h",
            TargetOptions { ca_file: file(), ..options() },
            "--ledger-ca-file",
            "rediss://",
        ),
        (
            "rediss://h",
            TargetOptions { cert_file: file(), ..options() },
            "--ledger-cert-file",
            "--ledger-key-file",
        ),
        (
            "redis://h",
            TargetOptions { sentinel_user: Some("s".into()), ..options() },
            "--ledger-sentinel-user",
            "redis+sentinel://",
        ),
    ] {
        let wrong = Target::new(url, options).unwrap_err();
        assert_eq!(wrong.setting, setting, "{url}: {wrong}");
        assert!(wrong.to_string().contains(part), "{url}: {wrong}");
    }
    let all = TargetOptions {
        user: Some("u".into()),
        // A file takes precedence over the environment's password.
        password: Some("p".into()),
        password_file: file(),
        database: Some(1),
        ca_file: file(),
        cert_file: file(),
        key_file: file(),
        sentinel_user: Some("s".into()),
        sentinel_password: Some("q".into()),
        accept_unfenced: true,
        ..options()
    };
    let target = Target::new("rediss+sentinel://h/m", all).unwrap();
    assert_eq!(target.credentials.password, Password::File("/f".into()));
    assert!(target.accepts_unfenced() && target.database == 1);
    let Endpoint::Sentinels { credentials, .. } = &target.endpoint else { panic!() };
    assert_eq!(credentials.user.as_deref(), Some("s"));
    assert!(matches!(credentials.password, Password::Given(_)));
}
