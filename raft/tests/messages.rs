//! Single messages in the wrong order, at the wrong time, or from nobody that would send them; and a group that is
//! between two configurations. What a script's ordered links cannot show.

use std::time::Duration;

use krita_raft::*;

const MILLISECOND: u64 = 1_000_000;

fn replica(id: u64, configuration: Configuration) -> Raft<Vec<u8>> {
    let config = Config::new(ReplicaId(id));
    Raft::new(config, Restored::first_start(configuration), Time(0)).expect("a valid start")
}

fn three(id: u64) -> Raft<Vec<u8>> {
    replica(id, Configuration::new((1..=3).map(ReplicaId), []))
}

fn message(from: u64, to: u64, term: u64, body: Body<Vec<u8>>) -> Message<Vec<u8>> {
    Message { from: ReplicaId(from), to: ReplicaId(to), term: Term(term), body, marks: Marks::default() }
}

fn entry(index: u64, term: u64) -> Entry<Vec<u8>> {
    Entry { term: Term(term), index: Index(index), kind: EntryKind::Command, payload: vec![] }
}

fn append(previous: (u64, u64), entries: Vec<Entry<Vec<u8>>>) -> Body<Vec<u8>> {
    Body::Append {
        previous_index: Index(previous.0),
        previous_term: Term(previous.1),
        commit: Index(0),
        entries,
        round: Round(1),
    }
}

/// Everything becomes durable at once; returns what is sent.
fn settle(raft: &mut Raft<Vec<u8>>, now: Time) -> Vec<Message<Vec<u8>>> {
    let mut sent = Vec::new();
    while let Some(ready) = raft.ready() {
        raft.durable(now, ready.number);
        sent.extend(ready.messages);
        sent.extend(ready.messages_after);
    }
    sent
}

fn grants(sent: &[Message<Vec<u8>>]) -> bool {
    sent.iter().any(|message| message.body == Body::VoteReply { granted: true })
}

#[test]
fn a_promise_holds_in_a_term_that_was_entered_by_other_means() {
    let mut voter = three(2);
    let vote = || message(3, 2, 5, Body::Vote { last_index: Index(0), last_term: Term(0), transfer: false });
    voter.step(Time(0), message(1, 2, 1, Body::Heartbeat { commit: Index(0), round: Round(1) }));
    // A late refusal of a replica that is stranded in term 5.
    voter.step(Time(1), message(3, 2, 5, Body::PreVoteReply { granted: false }));
    assert_eq!(voter.status().term, Term(5));
    voter.step(Time(900 * MILLISECOND), vote());
    assert!(!grants(&settle(&mut voter, Time(900 * MILLISECOND))), "leader 1 may hold a lease");
    voter.step(Time(1000 * MILLISECOND), vote());
    assert!(grants(&settle(&mut voter, Time(1000 * MILLISECOND))));
}

#[test]
fn a_vote_that_the_leader_asked_for_is_heeded_at_once() {
    let mut voter = three(2);
    voter.step(Time(0), message(1, 2, 1, Body::Heartbeat { commit: Index(0), round: Round(1) }));
    let vote = Body::Vote { last_index: Index(0), last_term: Term(0), transfer: true };
    voter.step(Time(1), message(3, 2, 2, vote));
    assert!(grants(&settle(&mut voter, Time(1))));
}

#[test]
fn malformed_appends_change_nothing() {
    let malformed = [
        ("a gap", append((0, 0), vec![entry(2, 1)])),
        ("terms that decrease", append((0, 0), vec![entry(1, 1), entry(2, 0)])),
        ("a term beyond the sender's", append((0, 0), vec![entry(1, 3)])),
        ("an entry older than the one before", append((4, 2), vec![entry(5, 1)])),
    ];
    for (what, body) in malformed {
        let mut follower = three(2);
        follower.step(Time(0), message(1, 2, 2, body));
        assert_eq!(follower.status().last, Index(0), "{what}");
        assert!(settle(&mut follower, Time(0)).is_empty(), "{what} is answered");
    }
}

#[test]
fn what_is_meant_for_another_replica_is_ignored() {
    let mut follower = three(2);
    follower.step(Time(0), message(1, 7, 9, append((0, 0), vec![entry(1, 9)])));
    follower.step(Time(0), message(2, 2, 9, append((0, 0), vec![entry(1, 9)])));
    assert_eq!((follower.status().last, follower.status().term), (Index(0), Term(0)));
}

#[test]
fn a_late_append_does_not_cut_off_what_followed_it() {
    let mut follower = three(2);
    follower.step(Time(0), message(1, 2, 1, append((0, 0), vec![entry(1, 1), entry(2, 1)])));
    follower.step(Time(0), message(1, 2, 1, append((0, 0), vec![entry(1, 1)])));
    assert_eq!(follower.status().last, Index(2));
}

#[test]
fn a_truncation_overtakes_a_write_that_is_still_on_its_way() {
    let mut follower = three(2);
    follower.step(Time(0), message(1, 2, 1, append((0, 0), vec![entry(1, 1), entry(2, 1)])));
    let first = follower.ready().expect("entries to write");
    follower.step(Time(0), message(3, 2, 2, append((1, 1), vec![entry(2, 2)])));
    let second = follower.ready().expect("a truncation and an entry to write");
    assert_eq!((second.truncate_after, second.entries.len()), (Some(Index(1)), 1));
    follower.durable(Time(1), first.number);
    assert_eq!(follower.status().durable, Index(1), "the write's second entry is not the log's any more");
    follower.durable(Time(2), second.number);
    assert_eq!(follower.status().durable, Index(2));
}

/// A leader of term 1 in this configuration, elected with all votes.
fn leader(configuration: Configuration) -> Raft<Vec<u8>> {
    let others: Vec<u64> = configuration.all_voters().map(|id| id.0).filter(|id| *id != 1).collect();
    let mut raft = replica(1, configuration);
    raft.campaign(Time(0)).expect("nobody is promised anything");
    settle(&mut raft, Time(0));
    for granted in [Body::PreVoteReply { granted: true }, Body::VoteReply { granted: true }] {
        for from in &others {
            raft.step(Time(0), message(*from, 1, 1, granted.clone()));
        }
        settle(&mut raft, Time(0));
    }
    assert_eq!(raft.status().role, RoleKind::Leader);
    raft
}

fn accepted(from: u64, matched: u64) -> Message<Vec<u8>> {
    let answer = AppendAnswer::Accepted { matched: Index(matched) };
    message(from, 1, 1, Body::AppendReply { round: Round(1), answer })
}

#[test]
fn a_joint_group_commits_and_leases_by_two_majorities() {
    let mut joint = Configuration::new([1, 2, 3].map(ReplicaId), []);
    joint.voters_outgoing = [1, 4, 5].map(ReplicaId).into();
    let mut raft = leader(joint);
    raft.step(Time(1), accepted(2, 1));
    raft.step(Time(1), accepted(3, 1));
    assert_eq!(
        (raft.status().commit, raft.status().lease_until),
        (Index(0), None),
        "one majority is not enough"
    );
    raft.step(Time(1), accepted(5, 1));
    assert_eq!(raft.status().commit, Index(1));
    assert_eq!(raft.status().lease_until, Some(Time(800 * MILLISECOND)));
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_ignored() {
    let mut raft = leader(Configuration::new([1, 2, 3].map(ReplicaId), []));
    raft.step(Time(1), message(2, 1, 1, Body::HeartbeatReply { round: Round(1000) }));
    raft.step(Time(1), accepted(9, 1));
    assert_eq!(raft.status().lease_until, None);
    raft.step(Time(1), accepted(2, 1000));
    assert_eq!(raft.status().commit, Index(0));
}

#[test]
fn proposals_and_reads_are_bounded() {
    let mut config = Config::new(ReplicaId(1));
    config.proposals_pending_max = 3;
    config.reads_pending_max = 1;
    let restored = Restored::first_start(Configuration::new([ReplicaId(1)], []));
    let mut raft: Raft<Vec<u8>> = Raft::new(config, restored, Time(0)).expect("a valid start");
    raft.tick(Time(0));
    let ready = raft.ready().expect("a vote to write");
    raft.durable(Time(0), ready.number);
    // The start of the term counts too.
    assert!(raft.propose(Time(0), vec![1]).is_ok());
    assert!(raft.propose(Time(0), vec![2]).is_ok());
    assert_eq!(raft.propose(Time(0), vec![3]), Err(ProposeError::TooMuchPending));
    assert!(raft.read(Time(0), ReadToken(1)).is_ok());
    assert_eq!(raft.read(Time(0), ReadToken(2)), Err(ReadError::TooMuchPending));
    settle(&mut raft, Time(0));
    assert!(raft.propose(Time(0), vec![4]).is_ok());
    assert!(raft.read(Time(0), ReadToken(3)).is_ok());
}

#[test]
fn unsafe_settings_and_contradictory_state_are_refused() {
    let valid = Config::new(ReplicaId(1));
    let lease = |lease| Config { lease: Some(lease), ..valid.clone() };
    assert_eq!(lease(Duration::from_millis(900)).validate(), Err(ConfigError::LeaseTooLong));
    assert_eq!(lease(Duration::from_millis(899)).validate(), Ok(()));
    let silent = Config { check_quorum: false, ..valid.clone() };
    assert_eq!(silent.validate(), Err(ConfigError::LeaseWithoutCheckQuorum));
    let slow = Config { heartbeat_interval: Duration::from_millis(501), ..valid.clone() };
    assert_eq!(slow.validate(), Err(ConfigError::HeartbeatTooSlow));

    let mut restored = Restored::first_start(Configuration::new([ReplicaId(1)], []));
    restored.applied = Index(1);
    assert!(matches!(
        Raft::<Vec<u8>>::new(valid.clone(), restored, Time(0)),
        Err(ConfigError::Restored { .. })
    ));
    let both = Configuration::new([ReplicaId(1)], [ReplicaId(1)]);
    assert!(matches!(
        Raft::<Vec<u8>>::new(valid, Restored::first_start(both), Time(0)),
        Err(ConfigError::Configuration)
    ));
}

#[test]
fn a_snapshot_never_replaces_a_log_that_holds_it() {
    let configuration = Configuration::new((1..=3).map(ReplicaId), []);
    let mut follower = three(2);
    follower.step(Time(0), message(1, 2, 1, append((0, 0), vec![entry(1, 1), entry(2, 1), entry(3, 1)])));
    settle(&mut follower, Time(0));
    let position = Position { index: Index(2), term: Term(1) };
    let meta = SnapshotMeta { position, membership: Membership::first(configuration) };
    assert!(!follower.snapshot_begin(Time(1), &meta), "entry 3 is acknowledged and must stay");
    assert_eq!((follower.status().last, follower.status().commit), (Index(3), Index(2)));
}
