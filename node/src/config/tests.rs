//! What users write, and what they are told.

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = r#"cluster_name: "mycluster"
node_id: "node1"
peers:
  - address: "127.0.0.1:8080"
  - address: "127.0.0.1:8081"
  - address: "127.0.0.1:8082"
data_directory: "/var/lib/krita"
port: 8080
"#;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn load_with(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigErrors> {
    let path = Path::new("/etc/krita/krita.yaml");
    load(Sources {
        fallbacks: &[],
        file: Some((path, text)),
        environment: &pairs(environment),
        flags: &pairs(flags),
        memory_bytes: Some(8 << 30),
    })
}

/// The example with lines added must be refused, with all of these in the text.
fn refused(lines: &str, expected: &[&str]) {
    let text = format!("{EXAMPLE}{lines}\n");
    let environment: &[_] = if lines.contains("insecure") { &[] } else { &[("KRITA_TOKEN", "krita_x")] };
    let error = load_with(&text, environment, &[]).expect_err(lines).to_string();
    for part in expected {
        assert!(error.contains(part), "{lines:?} gave {error:?}, without {part:?}");
    }
}

fn accepted(lines: &str) -> Config {
    let text = format!("{EXAMPLE}{lines}\n");
    load_with(&text, &[("KRITA_TOKEN", "krita_x")], &[])
        .unwrap_or_else(|error| panic!("{lines}: {error}"))
        .config
}

#[test]
fn the_documented_example_works_unchanged() {
    let loaded = load_with(EXAMPLE, &[("KRITA_TOKEN", "krita_x"), ("PATH", "/bin")], &[]).expect("valid");
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let config = loaded.config;
    assert_eq!((config.cluster_name.as_str(), config.node_id.as_str()), ("mycluster", "node1"));
    assert_eq!(config.peers, ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082"]);
    assert_eq!(config.data_directory, Path::new("/var/lib/krita"));
    assert_eq!(config.advertised_address, "127.0.0.1:8080");
    assert_eq!(config.bind_address, "127.0.0.1:8080".parse().expect("an address"));
    assert_eq!(config.tls_cert_path.as_deref(), Some(Path::new("/etc/krita/certs")));
    assert_eq!(config.token_digest, Some(TokenDigest::of("krita_x")));
    assert_eq!((config.shards, config.replication_factor, config.cores), (64, 3, None));
    assert_eq!(config.lease(), Some(Duration::from_millis(600)));
    assert_eq!((config.segment_bytes, config.log_file), (64 << 20, None));
}

#[test]
fn variables_win_over_the_file_and_flags_over_variables() {
    let environment = [
        ("KRITA_CLUSTER_NAME", "other"),
        ("KRITA_DATA_DIRECTORY", "data"),
        ("KRITA_PORT", "8081"),
        ("KRITA_TLS_CERT_PATH", "/c"),
        ("KRITA_TOKEN", "krita_x"),
        ("KRITA_SEGMENT_BYTES", "8 MiB"),
        ("KRITA_HOST", "for the client"),
    ];
    let loaded = load_with(EXAMPLE, &environment, &[("--port", "8082"), ("node-id", "n3")]).expect("valid");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!((config.cluster_name.as_str(), config.node_id.as_str(), config.port), ("other", "n3", 8082));
    assert_eq!(config.data_directory, Path::new("data"), "counts from the working directory");
    assert_eq!(config.tls_cert_path.as_deref(), Some(Path::new("/c")));
    assert_eq!((config.segment_bytes, config.advertised_address.as_str()), (8 << 20, "127.0.0.1:8082"));
    let loaded = load_with(EXAMPLE, &[("KRITA_TOKEN", "x"), ("KRITA_PROT", "1")], &[]).expect("valid");
    assert!(loaded.warnings[0].contains("KRITA_PROT") && loaded.warnings[0].contains("did you mean port?"));
}

#[test]
fn what_the_program_found_is_weaker_than_the_file() {
    let digest = TokenDigest::of("krita_y");
    let load = |text: &str| {
        let found = pairs(&[("token", "krita_x")]);
        load(Sources { fallbacks: &found, file: Some((Path::new("krita.yaml"), text)), ..Sources::default() })
    };
    assert_eq!(load(EXAMPLE).expect("valid").config.token_digest, Some(TokenDigest::of("krita_x")));
    let text = format!("{EXAMPLE}token: krita_y");
    assert_eq!(load(&text).expect("valid").config.token_digest, Some(digest));
}

#[test]
fn everything_may_come_from_the_environment() {
    let environment = [
        ("KRITA_CLUSTER_NAME", "c"),
        ("KRITA_NODE_ID", "n"),
        ("KRITA_DATA_DIRECTORY", "/d"),
        ("KRITA_TOKEN", "t"),
        ("KRITA_PEERS", "a.example:8080, b.example:8081"),
    ];
    let environment = pairs(&environment);
    let config = load(Sources { environment: &environment, ..Sources::default() }).expect("valid").config;
    assert_eq!(config.peers, ["a.example:8080", "b.example:8081"]);
    assert_eq!(config.bind_address, "0.0.0.0:8080".parse().expect("an address"));
    let missing = load(Sources::default()).expect_err("nothing given").to_string();
    for key in ["cluster_name", "node_id", "data_directory"] {
        assert!(
            missing.contains(&format!("{key} is missing: set it in krita.yaml or as KRITA_")),
            "{missing}"
        );
    }
}

#[test]
fn mistakes_are_named_with_their_place_and_a_remedy() {
    refused("shards: [", &["/etc/krita/krita.yaml:1", "not valid YAML"]);
    refused("port: 8081", &["not valid YAML", "port"]);
    refused("prot: 1", &["/etc/krita/krita.yaml:9:1", "unknown key prot", "did you mean port?"]);
    refused("replication-factor: 1", &["did you mean replication_factor?"]);
    refused("entirely_strange: 1", &["docs/configuration.md"]);
    refused("shards: 0", &["krita.yaml:9:1: shards is \"0\": give 1 to 4096 (shards)"]);
    refused("replication_factor: 8", &["give 1 to 7 (replicas)"]);
    refused("cores: -1", &["auto, or 1 to 1024 (cores)"]);
    refused("segment_bytes: 3 MiB", &["4 MiB to 1 GiB (bytes)"]);
    refused("segment_bytes: 4194305", &["a multiple of 1 MiB"]);
    refused("bind_address: localhost", &["an IP address"]);
    refused("advertised_address: \"127.0.0.1:9\"", &["is not one of peers"]);
    refused("leader_lease: yes please", &["true or false"]);
    refused("log_level: [info]", &["log_level has the wrong form"]);
    refused("heartbeat_interval_ms: 501", &["more than half of election_timeout_ms (750)"]);
    refused("leader_lease_ms: 900", &["below election_timeout_ms (750) less 10 % of clock drift (675)"]);
    refused("token: \"a\"\ntoken_sha256: \"12\"", &["token_sha256 is of the wrong form"]);
    let digest = TokenDigest::of("b").to_hex();
    refused(&format!("token_sha256: \"{digest}\""), &["different tokens"]);
    let several = load_with("port: 0\nshards: 0\n", &[], &[]).expect_err("four mistakes");
    assert_eq!(several.0.len(), 5, "{several}");
    let no_token = load_with(EXAMPLE, &[], &[]).expect_err("no token").to_string();
    assert!(no_token.contains("token_sha256") && no_token.contains("KRITA_TOKEN"), "{no_token}");
    assert!(load_with("just text", &[], &[]).expect_err("no keys").to_string().contains("krita.yaml:1:1"));
}

#[test]
fn doubt_about_which_peer_one_is_is_an_error() {
    let base = "cluster_name: c\nnode_id: n\ndata_directory: d\ntoken: t\n";
    let with = |lines: &str| load_with(&format!("{base}{lines}"), &[], &[]).map(|loaded| loaded.config);
    let same_port = "peers: [{address: \"a:8080\"}, {address: \"b:8080\"}]\n";
    assert!(with(same_port).expect_err("two").to_string().contains("set advertised_address"));
    let chosen = with(&format!("{same_port}advertised_address: b:8080")).expect("valid");
    assert_eq!(chosen.advertised_address, "b:8080");
    assert!(with("peers: [\"a:1\"]").expect_err("none").to_string().contains("none of peers"));
    assert!(with("peers: [\"a:8080\", \"a:8080\"]").expect_err("twice").to_string().contains("twice"));
    assert!(with("peers: [\"a\"]").is_err());
    assert_eq!(with("peers:").expect("valid").advertised_address, "127.0.0.1:8080");
    let config = with("bind_address: 0.0.0.0\nport: 99").expect("valid");
    assert_eq!(
        (config.bind_address.to_string().as_str(), config.advertised_address.as_str()),
        ("0.0.0.0:99", "127.0.0.1:99")
    );
    let config = with("advertised_address: \"[::1]:8080\"").expect("valid");
    assert_eq!(config.bind_address.to_string(), "[::1]:8080");
    assert_eq!(config.data_directory, Path::new("/etc/krita/d"), "counts from the file's folder");
}

#[test]
fn insecure_needs_neither_certificates_nor_token_and_says_so() {
    let loaded = load_with(&format!("{EXAMPLE}insecure: true"), &[], &[]).expect("valid");
    assert_eq!((loaded.config.tls_cert_path, loaded.config.token_digest), (None, None));
    assert!(loaded.warnings[0].contains("may read and change all data"), "{:?}", loaded.warnings);
    assert!(load_with(&format!("{EXAMPLE}insecure: maybe"), &[], &[]).is_err());
}

#[test]
fn secrets_show_neither_in_errors_nor_in_debug_output() {
    let secret = "krita_top_secret";
    let config = load_with(EXAMPLE, &[("KRITA_TOKEN", secret)], &[]).expect("valid").config;
    assert!(!format!("{config:?}").contains(secret));
    let error = load_with(EXAMPLE, &[("KRITA_TOKEN_SHA256", secret)], &[]).expect_err("no digest");
    assert!(!error.to_string().contains(secret), "{error}");
}

#[test]
fn changed_keys_tell_what_a_reload_may_take_up() {
    let newer = accepted("request_timeout_ms: 100\nshards: 8");
    let changed: Vec<_> =
        accepted("").changed_keys(&newer).iter().map(|key| (key.name, key.dynamic)).collect();
    assert_eq!(changed, [("shards", false), ("request_timeout_ms", true)]);
    assert!(newer.changed_keys(&newer).is_empty());
}

#[test]
fn defaults_stand_within_their_own_bounds() {
    for key in &KEYS {
        if let Some(default) = key.default {
            assert_eq!(key.check(default), Ok(()), "{}", key.name);
        }
        assert!(key.help.ends_with('.') && !key.help.contains('|'), "{}", key.name);
    }
}

#[test]
fn budgets_are_shares_of_the_machine_unless_given() {
    let config = accepted("filter_bytes: 20MiB\nvalue_cache_bytes: 0");
    assert_eq!((config.memtable_bytes, config.block_cache_bytes), (512 << 20, 1 << 30));
    assert_eq!((config.filter_bytes, config.value_cache_bytes), (20 << 20, 0));
    assert_eq!(accepted("value_cache_bytes: auto").value_cache_bytes, 1 << 30);
    refused("memtable_bytes: 1KiB", &["memtable_bytes", "auto, or 1 MiB to 1024 GiB"]);
}

#[test]
fn a_lease_always_leaves_room_for_drift() {
    for (timeout, drift) in [(100, 1), (100, 40), (1000, 10), (60_000, 1)] {
        let config = accepted(&format!(
            "election_timeout_ms: {timeout}\nmax_clock_drift_percent: {drift}\nheartbeat_interval_ms: 10"
        ));
        let lease = config.lease().expect("leases are on");
        assert!(lease > Duration::ZERO && lease + config.clock_drift_max() < config.election_timeout);
    }
    assert_eq!(accepted("leader_lease: false").lease(), None);
    assert_eq!(accepted("leader_lease_ms: 674").lease(), Some(Duration::from_millis(674)));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test reads the documentation")]
fn configuration_reference_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("KRITA_BLESS").is_some() {
        std::fs::write(&path, reference()).expect("docs can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == reference(), "run KRITA_BLESS=1 cargo test -p krita-node configuration_reference");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}", lines in "([a-z_]{1,20}: ?[\\[\\]{}a-z0-9\":,-]{0,12}\n){0,5}") {
        for text in [&text, &lines, &format!("{EXAMPLE}{lines}"), &format!("{EXAMPLE}{text}")] {
            let _ = load_with(text, &[], &[]);
        }
    }

    #[test]
    fn no_value_of_any_key_makes_it_panic(at in 0..KEYS.len(), value in "\\PC{0,24}") {
        let _ = load_with(EXAMPLE, &[("KRITA_TOKEN", "x")], &[(KEYS[at].name, value.as_str())]);
    }
}
