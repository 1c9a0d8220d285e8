//! Replicas that may have forgotten, message by message: answers from before, in the wrong order, from another life;
//! and groups between two configurations. The stories with ordered links are in `scripts/suspect*.txt`.

use krita_raft::*;

const MILLISECOND: u64 = 1_000_000;

type Sent = Vec<Message<Vec<u8>>>;

fn message(from: u64, to: u64, term: u64, body: Body<Vec<u8>>) -> Message<Vec<u8>> {
    Message { from: ReplicaId(from), to: ReplicaId(to), term: Term(term), body, marks: Marks::default() }
}

fn marked(mut message: Message<Vec<u8>>, marks: Marks) -> Message<Vec<u8>> {
    message.marks = marks;
    message
}

fn plain(voters: u64) -> Configuration {
    Configuration::new((1..=voters).map(ReplicaId), [])
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

/// Everything becomes durable at once; returns what is sent, and what changed.
fn settle(raft: &mut Raft<Vec<u8>>, now: Time) -> (Sent, Vec<Change>) {
    let (mut sent, mut changes) = (Vec::new(), Vec::new());
    while let Some(ready) = raft.ready() {
        raft.durable(now, ready.number);
        sent.extend(ready.messages);
        sent.extend(ready.messages_after);
        changes.extend(ready.changes);
    }
    (sent, changes)
}

/// A leader of term 1, elected with all votes, whose first entry `committers` have acknowledged.
fn leader(configuration: Configuration, committers: &[u64]) -> Raft<Vec<u8>> {
    let others: Vec<u64> = configuration.all_voters().map(|id| id.0).filter(|id| *id != 1).collect();
    let config = Config::new(ReplicaId(1));
    let mut raft = Raft::new(config, Restored::first_start(configuration), Time(0)).expect("a valid start");
    raft.campaign(Time(0)).expect("nobody is promised anything");
    settle(&mut raft, Time(0));
    for granted in [Body::PreVoteReply { granted: true }, Body::VoteReply { granted: true }] {
        for from in &others {
            raft.step(Time(0), message(*from, 1, 1, granted.clone()));
        }
        settle(&mut raft, Time(0));
    }
    assert_eq!(raft.status().role, RoleKind::Leader);
    for from in committers {
        raft.step(Time(0), accepted(*from, 1));
    }
    settle(&mut raft, Time(0));
    raft
}

fn accepted(from: u64, matched: u64) -> Message<Vec<u8>> {
    let answer = AppendAnswer::Accepted { matched: Index(matched) };
    message(from, 1, 1, Body::AppendReply { round: Round(1), answer })
}

fn heard(from: u64, round: u64) -> Message<Vec<u8>> {
    message(from, 1, 1, Body::HeartbeatReply { round: Round(round) })
}

fn suspect(nonce: u64, doubts: u64) -> Marks {
    Marks { doubts, suspect: Some(SuspectMark { nonce, needs_snapshot: false }), ..Marks::default() }
}

fn repeated(doubts: u64) -> Marks {
    Marks { doubts, ..Marks::default() }
}

/// What the leader last told `to` to hold.
fn heal_of(sent: &Sent, to: u64) -> Option<Heal> {
    sent.iter().rev().find(|message| message.to == ReplicaId(to)).and_then(|message| message.marks.heal)
}

/// A round, and what the leader says in it.
fn beat(raft: &mut Raft<Vec<u8>>, at: u64) -> Sent {
    let now = Time(at * MILLISECOND);
    raft.tick(now);
    settle(raft, now).0
}

#[test]
fn what_a_suspect_said_before_counts_only_until_it_is_known() {
    let mut raft = leader(plain(3), &[2]);
    raft.propose(Time(1), vec![1]).expect("it leads");
    settle(&mut raft, Time(1));
    raft.step(Time(2), marked(heard(3, 1), suspect(7, 0)));
    assert!(raft.status().followers[1].suspect);
    raft.step(Time(3), accepted(3, 2));
    assert_eq!(raft.status().commit, Index(1), "an answer from before it forgot");
    raft.step(Time(4), marked(accepted(3, 2), suspect(7, 1)));
    assert_eq!(raft.status().commit, Index(1), "a suspect's answer");
    raft.step(Time(5), accepted(2, 2));
    assert_eq!(raft.status().commit, Index(2));
}

#[test]
fn a_suspect_gives_no_lease_and_is_no_heir() {
    let mut raft = leader(plain(3), &[3]);
    assert!(raft.status().lease_until.is_some());
    raft.step(Time(2), marked(heard(3, 1), suspect(7, 0)));
    assert_eq!(raft.status().lease_until, None, "it rested on what the suspect may have forgotten");
    raft.step(Time(2), marked(heard(3, 1), suspect(7, 1)));
    assert_eq!(raft.status().lease_until, None);
    assert_eq!(raft.transfer_leadership(Time(3), ReplicaId(3)), Err(TransferError::Suspect));
}

#[test]
fn all_others_confirm_in_a_round_begun_after_the_suspicion() {
    let mut raft = leader(plain(5), &[2, 3]);
    let begun_before = beat(&mut raft, 100);
    assert!(!begun_before.is_empty());
    raft.step(Time(101 * MILLISECOND), marked(heard(5, 2), suspect(7, 0)));
    for from in [2, 3, 4] {
        raft.step(Time(102 * MILLISECOND), heard(from, 2));
    }
    assert_eq!(heal_of(&beat(&mut raft, 200), 5), None, "round 2 began before");
    for from in [2, 3] {
        raft.step(Time(201 * MILLISECOND), heard(from, 3));
    }
    assert_eq!(
        heal_of(&beat(&mut raft, 300), 5),
        None,
        "replica 4 may lead a later term by a forgotten vote"
    );
    raft.step(Time(301 * MILLISECOND), heard(4, 3));
    assert_eq!(heal_of(&beat(&mut raft, 400), 5), Some(Heal { nonce: 7, through: Index(1) }));
}

#[test]
fn nothing_is_confirmed_before_an_entry_of_the_own_term_is_committed() {
    let mut raft = leader(plain(3), &[]);
    raft.step(Time(1), marked(heard(3, 1), suspect(7, 0)));
    beat(&mut raft, 100);
    raft.step(Time(101 * MILLISECOND), heard(2, 2));
    assert_eq!(heal_of(&beat(&mut raft, 200), 3), None);
    raft.step(Time(201 * MILLISECOND), accepted(2, 1));
    assert_eq!(heal_of(&beat(&mut raft, 300), 3), Some(Heal { nonce: 7, through: Index(1) }));
}

#[test]
fn in_a_joint_group_a_suspect_counts_in_neither_half() {
    let mut joint = Configuration::new([1, 2, 3].map(ReplicaId), []);
    joint.voters_outgoing = [1, 4, 5].map(ReplicaId).into();
    let mut raft = leader(joint, &[]);
    raft.step(Time(1), marked(heard(5, 1), suspect(7, 0)));
    raft.step(Time(2), accepted(2, 1));
    raft.step(Time(2), marked(accepted(5, 1), suspect(7, 1)));
    assert_eq!(raft.status().commit, Index(0), "the outgoing half has only the leader");
    raft.step(Time(3), accepted(4, 1));
    assert_eq!(raft.status().commit, Index(1));
    beat(&mut raft, 100);
    for from in [2, 3] {
        raft.step(Time(101 * MILLISECOND), heard(from, 2));
    }
    assert_eq!(heal_of(&beat(&mut raft, 200), 5), None, "replica 4 has not answered");
    raft.step(Time(201 * MILLISECOND), marked(heard(4, 2), suspect(8, 0)));
    beat(&mut raft, 300);
    for from in [2, 3] {
        raft.step(Time(301 * MILLISECOND), heard(from, 4));
    }
    assert_eq!(heal_of(&beat(&mut raft, 400), 5), None, "the suspects are a majority of the outgoing half");
}

#[test]
fn a_new_suspicion_is_confirmed_anew_and_older_answers_are_ignored() {
    let mut raft = leader(plain(3), &[2]);
    raft.step(Time(1), marked(heard(3, 1), suspect(7, 0)));
    beat(&mut raft, 100);
    raft.step(Time(101 * MILLISECOND), heard(2, 2));
    assert!(heal_of(&beat(&mut raft, 200), 3).is_some());
    raft.step(Time(201 * MILLISECOND), marked(accepted(3, 1), suspect(7, 1)));
    assert_eq!(raft.status().followers[1].matched, Index(1));
    // It lost its memory again, after it had heard the leader.
    raft.step(Time(202 * MILLISECOND), marked(heard(3, 3), suspect(8, 1)));
    let status = raft.status().followers[1];
    assert_eq!((status.matched, status.suspect), (Index(0), true));
    raft.step(Time(203 * MILLISECOND), marked(heard(3, 3), repeated(1)));
    raft.step(Time(203 * MILLISECOND), marked(heard(3, 3), suspect(7, 1)));
    assert!(raft.status().followers[1].suspect, "what it said between the two is old news");
    assert_eq!(heal_of(&beat(&mut raft, 300), 3), None);
    raft.step(Time(301 * MILLISECOND), heard(2, 4));
    assert_eq!(heal_of(&beat(&mut raft, 400), 3).map(|heal| heal.nonce), Some(8));
}

#[test]
fn what_it_said_as_a_suspect_does_not_make_a_whole_replica_suspect_again() {
    let mut raft = leader(plain(3), &[2]);
    raft.step(Time(1), marked(heard(3, 1), suspect(7, 0)));
    beat(&mut raft, 100);
    raft.step(Time(101 * MILLISECOND), heard(2, 2));
    beat(&mut raft, 200);
    raft.step(Time(201 * MILLISECOND), marked(heard(3, 3), repeated(1)));
    assert!(!raft.status().followers[1].suspect);
    raft.step(Time(202 * MILLISECOND), marked(heard(3, 2), suspect(7, 1)));
    assert!(!raft.status().followers[1].suspect, "a straggler");
    raft.step(Time(203 * MILLISECOND), marked(heard(3, 3), suspect(8, 2)));
    assert!(raft.status().followers[1].suspect, "it forgot once more");
}

/// Replica 2 of three, in term 2, with a log of three entries of which nothing is known to be committed.
fn forgetful(boot: u64) -> Raft<Vec<u8>> {
    let mut config = Config::new(ReplicaId(2));
    config.boot = boot;
    let restored = Restored {
        hard_state: HardState { term: Term(2), vote: None, commit: Index(3) },
        terms: vec![TermRun { first: Index(1), term: Term(1) }],
        last: Index(3),
        may_have_run_before: true,
        suspect: Some(Suspicion::Forgetful),
        ..Restored::first_start(plain(3))
    };
    Raft::new(config, restored, Time(0)).expect("a valid start")
}

fn mark_of(raft: &mut Raft<Vec<u8>>) -> SuspectMark {
    raft.tick(Time(0));
    let (sent, _) = settle(raft, Time(0));
    assert!(sent.iter().all(|message| message.body == Body::Wake), "it knocks, and does nothing else");
    sent.first().and_then(|message| message.marks.suspect).expect("a suspect says so")
}

#[test]
fn a_suspect_calls_nothing_committed_that_it_was_not_shown() {
    let mut raft = forgetful(1);
    assert_eq!(raft.status().commit, Index(0), "the hard state may be newer than the log");
    let heartbeat = Body::Heartbeat { commit: Index(3), round: Round(9) };
    raft.step(Time(1), message(1, 2, 2, heartbeat.clone()));
    assert_eq!(raft.status().commit, Index(0), "meant for the log that it once had");
    raft.step(Time(1), message(1, 2, 2, append((1, 1), vec![entry(2, 2)])));
    settle(&mut raft, Time(1));
    raft.step(Time(2), message(1, 2, 2, heartbeat));
    assert_eq!((raft.status().commit, raft.status().last), (Index(2), Index(2)));
}

#[test]
fn a_suspect_is_whole_when_log_term_and_vote_are_durable() {
    let mut raft = forgetful(1);
    let nonce = mark_of(&mut raft).nonce;
    let heal = |nonce, through| Marks {
        doubts: 1,
        heal: Some(Heal { nonce, through: Index(through) }),
        ..Marks::default()
    };
    let first = message(1, 2, 2, append((1, 1), vec![entry(2, 2)]));
    raft.step(Time(1), marked(first, heal(nonce + 1, 2)));
    settle(&mut raft, Time(1));
    assert!(raft.status().suspect.is_some(), "that was about another suspicion");
    raft.step(Time(2), marked(message(1, 2, 2, append((2, 2), vec![entry(3, 2)])), heal(nonce, 4)));
    settle(&mut raft, Time(2));
    assert!(raft.status().suspect.is_some(), "entry 4 is missing");
    raft.step(Time(3), message(1, 2, 2, append((3, 2), vec![entry(4, 2)])));
    let entries = raft.ready().expect("an entry to write");
    raft.durable(Time(3), entries.number);
    assert!(raft.status().suspect.is_some(), "it has not voted in this term, as far as its disk knows");
    let vote = raft.ready().expect("a vote to write");
    assert_eq!(vote.hard_state.and_then(|state| state.vote), Some(ReplicaId(1)));
    assert_eq!(raft.status().commit, Index(4));
    raft.durable(Time(4), vote.number);
    let (_, changes) = settle(&mut raft, Time(4));
    assert_eq!(changes, [Change::Whole { term: Term(2) }]);
    raft.step(Time(5), message(1, 2, 2, Body::Heartbeat { commit: Index(4), round: Round(9) }));
    let (sent, _) = settle(&mut raft, Time(5));
    assert_eq!(sent[0].marks, repeated(1), "it repeats what it heard, and is no suspect");
}

#[test]
fn what_an_earlier_leader_said_is_void() {
    let mut raft = forgetful(1);
    let nonce = mark_of(&mut raft).nonce;
    let heal = Marks { doubts: 1, heal: Some(Heal { nonce, through: Index(2) }), ..Marks::default() };
    raft.step(Time(1), marked(message(1, 2, 2, append((0, 0), vec![entry(1, 2)])), heal));
    settle(&mut raft, Time(1));
    raft.step(Time(2), message(3, 2, 3, append((1, 2), vec![entry(2, 3)])));
    let (sent, changes) = settle(&mut raft, Time(2));
    assert!(!changes.iter().any(|change| matches!(change, Change::Whole { .. })));
    let answer = sent.last().expect("an acknowledgement");
    assert!(answer.marks.suspect.is_some() && answer.marks.doubts == 0);
}

#[test]
fn what_an_earlier_leader_showed_is_not_what_this_one_holds() {
    let mut raft = forgetful(1);
    raft.step(Time(1), message(1, 2, 2, append((0, 0), vec![entry(1, 2), entry(2, 2)])));
    settle(&mut raft, Time(1));
    raft.step(Time(2), message(3, 2, 3, Body::Heartbeat { commit: Index(2), round: Round(1) }));
    assert_eq!((raft.status().commit, raft.status().last), (Index(0), Index(2)));
}

#[test]
fn a_suspect_does_not_fall_silent() {
    let mut raft = forgetful(1);
    raft.step(Time(1), message(1, 2, 2, Body::Quiesce { last_index: Index(3), last_term: Term(1) }));
    let (sent, _) = settle(&mut raft, Time(1));
    assert_eq!(sent.last().map(|message| &message.body), Some(&Body::QuiesceReply { agreed: false }));
    assert_eq!((raft.status().quiesced, raft.status().commit), (false, Index(0)));
}

#[test]
fn nobody_is_whole_who_was_not_healed() {
    let mut raft = leader(plain(3), &[2]);
    raft.step(Time(1), marked(heard(3, 1), suspect(7, 0)));
    raft.step(Time(2), marked(heard(3, 1), repeated(1)));
    raft.step(Time(2), marked(accepted(3, 1), repeated(1)));
    let status = raft.status().followers[1];
    assert_eq!((status.suspect, status.matched), (true, Index(0)));
}

#[test]
fn a_suspect_neither_votes_nor_campaigns() {
    let mut raft = forgetful(1);
    let late = Time(10_000 * MILLISECOND);
    let position = |transfer| Body::Vote { last_index: Index(9), last_term: Term(2), transfer };
    raft.step(late, message(1, 2, 3, Body::PreVote { last_index: Index(9), last_term: Term(2) }));
    raft.step(late, message(1, 2, 3, position(false)));
    raft.step(late, message(1, 2, 4, position(true)));
    let (sent, _) = settle(&mut raft, late);
    let granted = [Body::PreVoteReply { granted: true }, Body::VoteReply { granted: true }];
    assert!(sent.len() == 3 && sent.iter().all(|message| !granted.contains(&message.body)));
    raft.step(late, message(1, 2, 4, Body::Heartbeat { commit: Index(0), round: Round(1) }));
    raft.step(late, message(1, 2, 4, Body::TimeoutNow));
    assert_eq!(raft.status().role, RoleKind::Follower);
    assert_eq!(raft.campaign(late), Err(CampaignError::Suspect));
}

#[test]
fn every_suspicion_has_a_name_of_its_own() {
    let mut names = vec![mark_of(&mut forgetful(1)).nonce, mark_of(&mut forgetful(2)).nonce];
    let mut raft = forgetful(3);
    names.push(mark_of(&mut raft).nonce);
    raft.become_suspect(Time(1), Suspicion::NeedsSnapshot);
    let (sent, _) = settle(&mut raft, Time(1));
    names.push(sent[0].marks.suspect.expect("a suspect says so").nonce);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 4);
}

#[test]
fn a_vote_counts_for_the_life_that_asked_for_it() {
    let mut config = Config::new(ReplicaId(1));
    config.boot = 5;
    let mut raft: Raft<Vec<u8>> =
        Raft::new(config, Restored::first_start(plain(3)), Time(0)).expect("a valid start");
    raft.campaign(Time(0)).expect("nobody is promised anything");
    settle(&mut raft, Time(0));
    raft.step(Time(0), message(2, 1, 1, Body::PreVoteReply { granted: true }));
    let (sent, _) = settle(&mut raft, Time(0));
    assert!(sent.iter().all(|message| message.marks.life == 5));
    let vote = |life| {
        marked(message(2, 1, 1, Body::VoteReply { granted: true }), Marks { life, ..Marks::default() })
    };
    raft.step(Time(1), vote(4));
    assert_eq!(raft.status().role, RoleKind::Candidate, "an earlier life asked for that");
    raft.step(Time(1), vote(5));
    assert_eq!(raft.status().role, RoleKind::Leader);
}

#[test]
fn a_voter_names_the_life_that_it_votes_for() {
    let restored = Restored::first_start(plain(3));
    let mut raft: Raft<Vec<u8>> =
        Raft::new(Config::new(ReplicaId(2)), restored, Time(0)).expect("a valid start");
    let request = Body::Vote { last_index: Index(0), last_term: Term(0), transfer: false };
    raft.step(Time(1), marked(message(1, 2, 1, request), Marks { life: 9, ..Marks::default() }));
    let (sent, _) = settle(&mut raft, Time(1));
    assert_eq!((&sent[0].body, sent[0].marks.life), (&Body::VoteReply { granted: true }, 9));
}

#[test]
fn a_damaged_state_takes_any_snapshot_and_nothing_else() {
    let mut raft: Raft<Vec<u8>> =
        Raft::new(Config::new(ReplicaId(2)), Restored::first_start(plain(3)), Time(0))
            .expect("a valid start");
    let entries = (1..=4).map(|index| entry(index, 1)).collect();
    let Body::Append { previous_index, previous_term, entries, round, .. } = append((0, 0), entries) else {
        unreachable!("it is one")
    };
    let body = Body::Append { previous_index, previous_term, commit: Index(4), entries, round };
    raft.step(Time(1), message(1, 2, 1, body));
    settle(&mut raft, Time(1));
    raft.applied(Index(4));
    let position = Position { index: Index(2), term: Term(1) };
    let old = SnapshotMeta { position, membership: Membership::first(plain(3)) };
    assert!(!raft.snapshot_begin(Time(2), &old), "it is whole, and further");
    raft.become_suspect(Time(3), Suspicion::NeedsSnapshot);
    raft.step(Time(3), message(1, 2, 1, append((4, 1), vec![entry(5, 1)])));
    let (sent, _) = settle(&mut raft, Time(3));
    assert_eq!(raft.status().last, Index(4));
    assert!(sent.iter().all(|message| message.marks.suspect.is_some_and(|mark| mark.needs_snapshot)));
    assert!(raft.snapshot_begin(Time(4), &old));
    raft.snapshot_installed(Time(5), old.clone());
    let status = raft.status();
    assert_eq!((status.last, status.commit, status.applied), (Index(2), Index(2), Index(2)));
    assert_eq!(status.suspect.map(|suspect| suspect.suspicion), Some(Suspicion::Forgetful));
    raft.step(Time(6), message(1, 2, 1, append((2, 1), vec![entry(3, 1)])));
    settle(&mut raft, Time(6));
    assert_eq!(raft.status().durable, Index(3));
    assert!(!raft.snapshot_begin(Time(7), &old), "once is enough");
}

#[test]
fn a_snapshot_that_was_installed_is_not_sent_again_for_an_older_answer() {
    let mut raft = leader(plain(3), &[2]);
    let damaged = |doubts| Marks {
        suspect: Some(SuspectMark { nonce: 7, needs_snapshot: true }),
        doubts,
        ..Marks::default()
    };
    raft.step(Time(1), marked(heard(3, 1), damaged(0)));
    let ready = raft.ready().expect("a snapshot is wanted");
    assert_eq!(ready.snapshots, [SnapshotNeeded { to: ReplicaId(3) }]);
    raft.durable(Time(1), ready.number);
    raft.step(Time(2), marked(heard(3, 1), damaged(1)));
    raft.snapshot_sent(Time(3), ReplicaId(3), Index(1));
    raft.step(Time(4), marked(heard(3, 1), damaged(1)));
    let mut snapshots = Vec::new();
    while let Some(ready) = raft.ready() {
        raft.durable(Time(4), ready.number);
        snapshots.extend(ready.snapshots);
    }
    assert!(snapshots.is_empty(), "that answer was given before it was installed");
}

#[test]
fn a_leader_that_becomes_suspect_hands_over_and_fails_its_reads() {
    let mut raft = leader(plain(3), &[2]);
    raft.read(Time(900 * MILLISECOND), ReadToken(1)).expect("it leads");
    raft.become_suspect(Time(900 * MILLISECOND), Suspicion::NeedsSnapshot);
    let mut reads = Vec::new();
    let mut sent = Vec::new();
    while let Some(ready) = raft.ready() {
        raft.durable(Time(900 * MILLISECOND), ready.number);
        reads.extend(ready.reads);
        sent.extend(ready.messages);
        assert!(ready.snapshots.is_empty(), "there is nothing good here to send");
    }
    assert_eq!(reads, [ReadOutcome::Failed { token: ReadToken(1) }]);
    assert!(sent.iter().any(|message| message.body == Body::TimeoutNow && message.to == ReplicaId(2)));
    assert_eq!(raft.status().role, RoleKind::Follower);
}
