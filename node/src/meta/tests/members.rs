//! Who joins, who is refused and why, who leaves.

use super::{CLUSTER, apply, description, formed, join, set_state, uuid, version_of};
use crate::identity::ClusterId;
use crate::meta::access::{Grant, Rights};
use crate::meta::refusal::{Effect, Refusal};
use crate::meta::wire::CommandError;
use crate::meta::{
    Command, JobNumber, JobState, Join, META_SHARD, MemberState, NodeNumber, Setting, Version, replica_id,
};

fn joined(number: u32) -> Effect {
    Effect::Joined { number: NodeNumber(number), retired: None }
}

#[test]
fn a_node_joins_once_however_often_it_asks() {
    let mut state = formed(3, 8, 3);
    assert_eq!(apply(&mut state, &join(description(4))), Ok(joined(4)));
    let again = apply(&mut state, &join(description(4)));
    assert_eq!(again, Ok(Effect::AlreadyMember { number: NodeNumber(4) }));
    let first = apply(&mut state, &join(description(1)));
    assert_eq!(first, Ok(Effect::AlreadyMember { number: NodeNumber(1) }));
}

#[test]
fn the_wrong_cluster_is_refused() {
    let mut state = formed(1, 1, 1);
    let ask = |cluster_name: &str, cluster_id| {
        Command::Join(Join { cluster_name: cluster_name.to_owned(), cluster_id, node: description(2) })
    };
    let wrong_name = apply(&mut state, &ask("shapes", None));
    assert!(matches!(wrong_name, Err(Refusal::WrongClusterName { .. })));
    assert_eq!(apply(&mut state, &ask("colours", Some(ClusterId([1; 16])))), Err(Refusal::WrongClusterId));
    assert_eq!(apply(&mut state, &ask("colours", Some(CLUSTER))), Ok(joined(2)));
}

#[test]
fn a_second_node_of_the_same_name_is_refused_but_a_wiped_one_retires_its_old_self() {
    let mut state = formed(3, 8, 3);
    let mut twin = description(2);
    twin.node_uuid = uuid(99);
    twin.address = "10.0.9.9:7400".to_owned();
    let refused = apply(&mut state, &join(twin.clone()));
    assert!(matches!(refused, Err(Refusal::DuplicateNodeId { holder: NodeNumber(2), .. })), "{refused:?}");
    // It is seen to be down: then this is where it went.
    let report = |expected| Command::ReportDown { number: NodeNumber(2), expected, down_since_ms: 17 };
    let version = version_of(&state, 2);
    assert_eq!(apply(&mut state, &report(version)), Ok(Effect::Changed));
    let retired = Some(NodeNumber(2));
    assert_eq!(apply(&mut state, &join(twin)), Ok(Effect::Joined { number: NodeNumber(4), retired }));
    assert_eq!(state.member(NodeNumber(2)).map(|member| member.state), Some(MemberState::Retired));
    // At its own address there is no doubt.
    let mut wiped = description(3);
    wiped.node_uuid = uuid(98);
    let retired = Some(NodeNumber(3));
    assert_eq!(apply(&mut state, &join(wiped)), Ok(Effect::Joined { number: NodeNumber(5), retired }));
    // The old directories do not come back, under any name.
    for old in [2, 3] {
        let mut ghost = description(old);
        assert_eq!(apply(&mut state, &join(ghost.clone())), Err(Refusal::DirectoryRemoved(NodeNumber(old))));
        ghost.node_id = "other".to_owned();
        assert_eq!(apply(&mut state, &join(ghost)), Err(Refusal::DirectoryRemoved(NodeNumber(old))));
    }
}

#[test]
fn addresses_names_and_versions_are_checked() {
    let mut state = formed(2, 4, 2);
    let mut node = description(3);
    node.address = description(1).address;
    let refused = apply(&mut state, &join(node.clone()));
    assert!(matches!(refused, Err(Refusal::AddressInUse { holder: NodeNumber(1), .. })));
    let mut renamed = description(1);
    renamed.node_id = "other".to_owned();
    assert!(matches!(apply(&mut state, &join(renamed)), Err(Refusal::DirectoryRenamed { .. })));
    let mut newer = description(3);
    (newer.feature_min, newer.feature_max) = (2, 3);
    let refused = apply(&mut state, &join(newer));
    assert_eq!(refused, Err(Refusal::VersionOutOfBounds { lowest: 2, highest: 3, active: 1 }));
    let mut nameless = description(3);
    nameless.node_id.clear();
    let mut weightless = description(3);
    weightless.weight = 0;
    for broken in [nameless, weightless] {
        assert!(matches!(apply(&mut state, &join(broken)), Err(Refusal::Invalid(_))));
    }
}

#[test]
fn an_older_view_changes_nothing() {
    let mut state = formed(3, 8, 3);
    assert_eq!(set_state(&mut state, 2, MemberState::Draining).map(|_| ()), Ok(()));
    let before = state.encode();
    let stale =
        Command::SetMemberState { number: NodeNumber(2), expected: Version(0), to: MemberState::Active };
    let refused = apply(&mut state, &stale);
    assert_eq!(refused, Err(Refusal::Version { expected: Version(0), current: Version(1) }));
    state.applied_index -= 1;
    assert_eq!(state.encode(), before);
}

#[test]
fn a_node_leaves_only_when_others_can_hold_what_it_held() {
    let mut state = formed(3, 8, 3);
    let refused = set_state(&mut state, 1, MemberState::Decommissioning);
    assert_eq!(refused, Err(Refusal::TooFewLeft { left: 2, needed: 3 }));
    let set =
        |value| Command::SetSetting { setting: Setting::ReplicationFactor, value, expected: Version(0) };
    assert!(matches!(apply(&mut state, &set(8)), Err(Refusal::SettingValue { value: 8, .. })));
    assert_eq!(apply(&mut state, &set(2)), Ok(Effect::Changed));
    let started = set_state(&mut state, 1, MemberState::Decommissioning);
    assert_eq!(started, Ok(Effect::JobStarted { job: JobNumber(1), enters: None }));
    let expected = version_of(&state, 1);
    let remove = Command::RemoveMember { number: NodeNumber(1), expected };
    let refused = apply(&mut state, &remove);
    assert_eq!(refused, Err(Refusal::StillHolds { number: NodeNumber(1), replicas: 9 }));
    // It is called back by cancelling the job.
    let cancel = Command::CancelJob { job: JobNumber(1), expected: Version(state.applied_index - 1) };
    assert_eq!(apply(&mut state, &cancel), Ok(Effect::Changed));
    assert_eq!(state.member(NodeNumber(1)).map(|member| member.state), Some(MemberState::Active));
    assert_eq!(state.job(JobNumber(1)).map(|job| job.state), Some(JobState::Cancelled));
}

#[test]
fn a_removed_member_leaves_a_tombstone() {
    let mut state = formed(1, 2, 1);
    assert_eq!(apply(&mut state, &join(description(2))), Ok(joined(2)));
    let active = set_state(&mut state, 2, MemberState::Active);
    assert!(matches!(active, Err(Refusal::Configuration { shard: META_SHARD, .. })), "{active:?}");
    assert!(set_state(&mut state, 2, MemberState::Decommissioning).is_ok(), "it holds nothing yet");
    let remove = |expected| Command::RemoveMember { number: NodeNumber(2), expected };
    let expected = version_of(&state, 2);
    assert_eq!(apply(&mut state, &remove(expected)), Ok(Effect::Changed));
    assert_eq!(apply(&mut state, &remove(expected)), Err(Refusal::UnknownMember(NodeNumber(2))));
    assert_eq!(apply(&mut state, &join(description(2))), Err(Refusal::DirectoryRemoved(NodeNumber(2))));
    let mut fresh = description(2);
    fresh.node_uuid = uuid(77);
    assert_eq!(apply(&mut state, &join(fresh)), Ok(joined(3)), "the name is free, the number is not");
}

#[test]
fn commands_of_a_newer_feature_wait_until_every_member_knows_them() {
    let mut state = formed(2, 2, 2);
    let grants = vec![Grant { key_prefix: "user:".into(), rights: Rights::READ.and(Rights::WRITE) }];
    let role = Command::PutRole { name: "app".to_owned(), expected: Version(0), grants };
    assert_eq!(apply(&mut state, &role), Err(Refusal::Feature { needed: 2, active: 1 }));
    let raise = Command::RaiseFeature { to: 2, expected: Version(0) };
    let refused = apply(&mut state, &raise);
    assert_eq!(refused, Err(Refusal::VersionOutOfBounds { lowest: 1, highest: 1, active: 2 }));
    for number in 1..=2 {
        let node = description(number);
        let update = Command::UpdateMember { number: NodeNumber(number), expected: Version(0), node };
        assert_eq!(apply(&mut state, &update), Ok(Effect::Changed));
    }
    assert_eq!(apply(&mut state, &raise), Ok(Effect::Changed));
    assert_eq!(apply(&mut state, &role), Ok(Effect::Changed));
    let mut old = description(3);
    old.feature_max = 1;
    assert!(matches!(apply(&mut state, &join(old)), Err(Refusal::VersionOutOfBounds { .. })));
}

#[test]
fn tokens_refer_to_roles() {
    let mut state = formed(1, 1, 1);
    let node = description(1);
    let update = Command::UpdateMember { number: NodeNumber(1), expected: Version(0), node };
    assert!(apply(&mut state, &update).is_ok());
    assert!(apply(&mut state, &Command::RaiseFeature { to: 2, expected: Version(0) }).is_ok());
    let token = |name: &str| Command::PutToken {
        name: name.to_owned(),
        expected: Version(0),
        digest: [3; 32],
        roles: vec!["app".to_owned()],
    };
    assert_eq!(apply(&mut state, &token("t")), Err(Refusal::UnknownName("role")));
    let grants = vec![Grant { key_prefix: "".into(), rights: Rights::ADMINISTER }];
    let role = Command::PutRole { name: "app".to_owned(), expected: Version(0), grants };
    assert!(apply(&mut state, &role).is_ok());
    assert_eq!(apply(&mut state, &token("t")), Ok(Effect::Changed));
    assert!(matches!(apply(&mut state, &token("u")), Err(Refusal::Invalid(_))), "one digest, one token");
    let role_version = state.role("app").expect("a role").version;
    let delete = Command::DeleteRole { name: "app".to_owned(), expected: role_version };
    assert_eq!(apply(&mut state, &delete), Err(Refusal::RoleInUse("t".to_owned())));
    let expected = state.token("t").expect("a token").version;
    let revoke = Command::DeleteToken { name: "t".to_owned(), expected };
    assert_eq!(apply(&mut state, &revoke), Ok(Effect::Changed));
    assert_eq!(apply(&mut state, &delete), Ok(Effect::Changed));
}

#[test]
fn what_this_version_does_not_know_is_no_command() {
    let bytes = join(description(2)).encode();
    assert!(Command::decode(&bytes).is_ok());
    // A kind of command that is not there yet: field 100, empty.
    let unknown_kind = [8, 1, 0xa2, 0x06, 0];
    assert!(matches!(Command::decode(&unknown_kind), Err(CommandError::Unknown(_))));
    // A known command with one field more.
    let mut unknown_field = bytes.to_vec();
    unknown_field.extend_from_slice(&[0xa0, 0x06, 1]);
    assert!(matches!(Command::decode(&unknown_field), Err(CommandError::Unknown(_))));
    let newer = [8, 200, 1];
    assert_eq!(Command::decode(&newer), Err(CommandError::Newer(200)));
    for length in 0..bytes.len() {
        assert!(Command::decode(&bytes[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn the_meta_group_of_a_new_cluster_has_three_voters_at_most() {
    for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (5, 3)] {
        let state = formed(nodes, 2, 3);
        let shard = state.map().shard(META_SHARD).expect("shard 0");
        assert_eq!((shard.replicas.len(), shard.voters().count()), (nodes as usize, voters));
        assert_eq!(shard.preferred_leader, replica_id(META_SHARD, NodeNumber(1), 0));
    }
}
