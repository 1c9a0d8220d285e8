//! Unit tests of the state machine: the sizes that it reckons with, and its times.

use std::sync::Arc;
use std::time::Duration;

use super::member::{
    ACCUSERS_MAX, ADDRESS_BYTES_MAX, INCARNATION_MAX, NAME_BYTES_MAX, NodeUuid, Profile, Record,
    StampedVitals, State, Vitals, VitalsNews,
};
use super::{Body, Health, Message, Options};

fn largest() -> Record {
    let name = "n".repeat(NAME_BYTES_MAX);
    let vitals = Vitals {
        load_per_mille: u32::MAX,
        stored_bytes: u64::MAX,
        health: Health::Failing,
        shard_map_epoch: u64::MAX,
        settings_epoch: u64::MAX,
    };
    Record {
        uuid: NodeUuid([255; 16]),
        incarnation: INCARNATION_MAX,
        state: State::Dead,
        profile: Arc::new(Profile {
            node_id: name.clone(),
            node_number: u32::MAX,
            address: "a".repeat(ADDRESS_BYTES_MAX),
            zone: name.clone(),
            capacity: u64::MAX,
            software_version: name,
            feature_version: u32::MAX,
            boot_id: u64::MAX,
        }),
        vitals: StampedVitals { incarnation: INCARNATION_MAX, sequence: u32::MAX, vitals },
        accusers: vec![NodeUuid([255; 16]); ACCUSERS_MAX],
        gone_for: Duration::from_secs(400 * 24 * 3600),
    }
}

#[test]
fn a_record_takes_no_more_than_is_reckoned() {
    let record = largest();
    let tag_and_length = 1 + 2;
    assert!(record.wire_bytes() + tag_and_length <= record.bytes_max());
    let message = |vitals| Message {
        cluster_name: "c".into(),
        cluster_id: None,
        sender: Record { state: State::Alive, ..largest() },
        news: Vec::new(),
        vitals,
        body: Body::News,
    };
    let news = VitalsNews { uuid: record.uuid, vitals: record.vitals };
    let length = |vitals| prost::Message::encoded_len(&message(vitals).to_wire());
    assert!(length(vec![news]) - length(Vec::new()) <= VitalsNews::BYTES_MAX);
}

#[test]
fn suspicions_are_shorter_the_more_confirm_them() {
    let options = Options::default();
    for nodes in [2, 3, 4, 5, 8, 20, 100, 500, 4096] {
        let needed = options.confirmations_for(nodes);
        let times: Vec<Duration> = (0..=needed + 1).map(|it| options.suspicion_timeout(nodes, it)).collect();
        assert!(times.windows(2).all(|pair| pair[0] >= pair[1]), "{nodes} nodes: {times:?}");
        assert_eq!(times[needed], options.suspicion_min_for(nodes));
        let longest =
            if nodes < 3 { options.suspicion_min_for(nodes) } else { options.suspicion_max_for(nodes) };
        assert_eq!(times[0], longest);
    }
    assert_eq!(options.suspicion_min_for(100), options.suspicion_min * 9 / 8);
    assert_eq!(options.suspicion_min_for(99), options.suspicion_min);
    assert_eq!([3, 50, 100, 500].map(|nodes| options.retransmissions(nodes)), [8, 12, 16, 16]);
}
