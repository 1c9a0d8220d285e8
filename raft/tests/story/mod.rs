//! A group under the control of a script, which tells what happens as lines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use krita_raft::*;

use crate::common::{Disk, Machine, Replica, Write, membership_of};

type Link = (u64, u64);

#[derive(Default)]
pub(crate) struct Story {
    base: Option<Config>,
    configuration: Configuration,
    replicas: BTreeMap<u64, Replica>,
    crashed: BTreeMap<u64, Disk>,
    clocks: BTreeMap<u64, Time>,
    held: BTreeSet<u64>,
    cut: BTreeSet<Link>,
    links: BTreeMap<Link, VecDeque<Message<Vec<u8>>>>,
    snapshots: BTreeMap<Link, Machine>,
    events: Vec<String>,
    lives: u64,
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is not a number"))
}

fn duration(word: &str) -> Duration {
    match word.strip_suffix("ms") {
        Some(word) => Duration::from_millis(number(word)),
        None => Duration::from_secs(number(word.strip_suffix('s').expect("a duration ends in ms or s"))),
    }
}

fn link(word: &str) -> Link {
    let (from, to) = word.split_once("->").expect("a link is written 1->2");
    (number(from), number(to))
}

impl Story {
    pub(crate) fn command(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, words) = words.split_first().expect("a command");
        match (*command, words) {
            ("group", [voters, options @ ..]) => self.group(number(voters), options),
            ("tick", [id, time]) => self.tick(number(id), duration(time)),
            ("time", [time]) => self.all().into_iter().for_each(|id| self.tick(id, duration(time))),
            ("expire", [id]) => self.expire(number(id)),
            ("elect", [id]) => {
                self.expire(number(id));
                self.deliver_all();
            }
            ("deliver", []) => self.deliver_all(),
            ("deliver", [word]) => self.deliver(link(word)),
            ("drop", [word]) => {
                let dropped = self.links.remove(&link(word)).unwrap_or_default();
                dropped
                    .iter()
                    .for_each(|message| self.events.push(format!("lost: {}", tell_message(message))));
            }
            ("cut", [one, other]) => {
                self.cut.extend([(number(one), number(other)), (number(other), number(one))]);
            }
            ("heal", []) => self.cut.clear(),
            ("hold", [id]) => {
                self.held.insert(number(id));
            }
            ("durable", [id]) => self.complete_writes(number(id)),
            ("release", [id]) => {
                self.held.remove(&number(id));
                self.complete_writes(number(id));
                self.pump(number(id));
            }
            ("crash", [id]) => {
                let replica = self.replicas.remove(&number(id)).expect("it runs");
                self.crashed.insert(number(id), replica.disk);
            }
            ("restart", [id]) => self.restart(number(id)),
            ("forget", [id, losses @ ..]) => self.forget(number(id), losses),
            ("checkpoint", [id]) => self.replicas.get_mut(&number(id)).unwrap().checkpoint(0),
            ("checkpoint", [id, keep]) => {
                self.replicas.get_mut(&number(id)).unwrap().checkpoint(number(keep));
            }
            ("snapshot", [word]) => self.snapshot(link(word), true),
            ("snapshot", [word, "unheard"]) => self.snapshot(link(word), false),
            ("status", []) => self.status(),
            ("join", [id]) => {
                self.clocks.insert(number(id), Time(0));
                self.crashed.insert(number(id), Disk::default());
                self.restart(number(id));
            }
            ("change", [id, parts @ ..]) => self.change(number(id), parts),
            (call, [id, arguments @ ..]) => self.call(call, number(id), arguments),
            _ => panic!("unknown command `{line}`"),
        }
        std::mem::take(&mut self.events)
    }

    fn all(&self) -> Vec<u64> {
        self.replicas.keys().copied().collect()
    }

    fn group(&mut self, voters: u64, options: &[&str]) {
        *self = Story::default();
        let mut base = Config::new(ReplicaId(0));
        base.quiesce_after = None;
        let mut learners = 0;
        for option in options {
            match option.split_once('=') {
                Some(("learners", count)) => learners = number(count),
                Some(("lease", "off")) => base.lease = None,
                Some(("pre_vote", "off")) => base.pre_vote = false,
                Some(("quiesce", time)) => base.quiesce_after = Some(duration(time)),
                Some(("cache", bytes)) => base.entry_cache_bytes_max = number(bytes) as usize,
                _ => panic!("unknown option `{option}`"),
            }
        }
        self.base = Some(base);
        self.configuration =
            Configuration::new((1..=voters).map(ReplicaId), (voters + 1..=voters + learners).map(ReplicaId));
        for id in 1..=voters + learners {
            self.clocks.insert(id, Time(0));
            self.crashed.insert(id, Disk::default());
            self.restart(id);
        }
    }

    fn restart(&mut self, id: u64) {
        let mut config = self.base.clone().expect("the script begins with a group");
        config.id = ReplicaId(id);
        self.lives += 1;
        config.boot = self.lives;
        let disk = self.crashed.remove(&id).expect("it is down");
        let is_founder = self.configuration.is_member(ReplicaId(id));
        let first = if is_founder { self.configuration.clone() } else { Configuration::default() };
        let replica = Replica::start(config, first, disk, self.clocks[&id]);
        self.replicas.insert(id, replica);
        self.pump(id);
    }

    /// A replica that is down loses some of its disk, and knows it.
    fn forget(&mut self, id: u64, losses: &[&str]) {
        let disk = self.crashed.get_mut(&id).expect("it is down");
        disk.suspect = Some(Suspicion::Forgetful);
        for loss in losses {
            match loss.split_once('=') {
                Some(("after", index)) => disk.truncate(Index(number(index))),
                None if *loss == "votes" => disk.hard_state = HardState::default(),
                None if *loss == "all" => {
                    *disk = Disk { suspect: disk.suspect, has_run: true, ..Disk::default() }
                }
                None if *loss == "state" => disk.suspect = Some(Suspicion::NeedsSnapshot),
                Some(_) | None => panic!("unknown loss `{loss}`"),
            }
        }
    }

    fn tick(&mut self, id: u64, time: Duration) {
        let now = self.clocks[&id].after(time);
        self.clocks.insert(id, now);
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.raft.tick(now);
            self.pump(id);
        }
    }

    fn expire(&mut self, id: u64) {
        let due = self.replicas[&id].raft.next_tick();
        assert_ne!(due, Time::NEVER, "{id} has no timer");
        self.tick(id, due.since(self.clocks[&id]));
    }

    fn call(&mut self, call: &str, id: u64, arguments: &[&str]) {
        let now = self.clocks[&id];
        let raft = &mut self.replicas.get_mut(&id).expect("it runs").raft;
        let problem = match (call, arguments) {
            ("propose", [text]) => match raft.propose(now, text.as_bytes().to_vec()) {
                Ok((term, index)) => {
                    self.events.push(format!("{id} appends {index}@{term}"));
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            ("read", [token]) => {
                raft.read(now, ReadToken(number(token))).err().map(|error| error.to_string())
            }
            ("transfer", [to]) => {
                raft.transfer_leadership(now, ReplicaId(number(to))).err().map(|error| error.to_string())
            }
            ("campaign", []) => raft.campaign(now).err().map(|error| error.to_string()),
            ("suspect", [what]) => {
                let suspicion =
                    if *what == "state" { Suspicion::NeedsSnapshot } else { Suspicion::Forgetful };
                raft.become_suspect(now, suspicion);
                self.replicas.get_mut(&id).unwrap().disk.suspect = Some(suspicion);
                None
            }
            ("step_down", []) => {
                raft.step_down(now);
                None
            }
            ("wake", []) => {
                raft.wake(now);
                None
            }
            ("core_died", [peer]) => {
                raft.peer_core_died(now, ReplicaId(number(peer)));
                None
            }
            ("unreachable", [peer]) => {
                raft.peer_unreachable(now, ReplicaId(number(peer)));
                None
            }
            _ => panic!("unknown call `{call}`"),
        };
        if let Some(problem) = problem {
            self.events.push(format!("{id} refuses: {problem}"));
        }
        self.pump(id);
    }

    /// Proposes a change of the members.
    fn change(&mut self, id: u64, parts: &[&str]) {
        let now = self.clocks[&id];
        let raft = &mut self.replicas.get_mut(&id).expect("it runs").raft;
        let mut change = ConfigurationChange::default();
        let mut expected = raft.membership().set_by;
        for part in parts {
            let (what, ids) = part.split_once('=').expect("what=ids");
            let set = match what {
                "add" => &mut change.add,
                "promote" => &mut change.promote,
                "demote" => &mut change.demote,
                "remove" => &mut change.remove,
                "expected" => {
                    let (index, term) = ids.split_once('@').expect("index@term");
                    expected = Position { index: Index(number(index)), term: Term(number(term)) };
                    continue;
                }
                _ => panic!("unknown part `{part}`"),
            };
            set.extend(ids.split(',').map(|id| ReplicaId(number(id))));
        }
        match raft.propose_configuration(now, &change, expected) {
            Ok((term, index)) => self.events.push(format!("{id} appends {index}@{term}")),
            Err(error) => self.events.push(format!("{id} refuses: {error}")),
        }
        self.pump(id);
    }

    fn deliver_all(&mut self) {
        for _ in 0..100 {
            let links: Vec<Link> = self.links.keys().copied().collect();
            if links.is_empty() {
                return;
            }
            links.into_iter().for_each(|link| self.deliver(link));
        }
        panic!("the group never stops talking");
    }

    fn deliver(&mut self, link: Link) {
        for message in self.links.remove(&link).unwrap_or_default() {
            let Some(replica) = self.replicas.get_mut(&link.1) else { continue };
            self.events.push(tell_message(&message));
            replica.raft.step(self.clocks[&link.1], message);
            self.pump(link.1);
        }
    }

    fn send(&mut self, messages: Vec<Message<Vec<u8>>>) {
        for message in messages {
            let link = (message.from.0, message.to.0);
            if !self.cut.contains(&link) {
                self.links.entry(link).or_default().push_back(message);
            }
        }
    }

    fn pump(&mut self, id: u64) {
        while let Some(mut ready) = self.replicas.get_mut(&id).and_then(|replica| replica.raft.ready()) {
            for change in &ready.changes {
                self.events.push(match change {
                    Change::BecameLeader { term } => format!("{id} leads term {term}"),
                    Change::LostLeadership { term } => format!("{id} leads term {term} no longer"),
                    Change::LeaderKnown { term, leader: Some(leader) } => {
                        format!("{id} follows {leader} in term {term}")
                    }
                    Change::Whole { term } => format!("{id} is whole again in term {term}"),
                    Change::Membership { .. } => {
                        let configuration = self.replicas[&id].raft.configuration();
                        format!("{id} goes by {}", tell_members(configuration))
                    }
                    Change::LeaderKnown { term, leader: None } => {
                        format!("{id} knows no leader in term {term}")
                    }
                });
            }
            for read in &ready.reads {
                self.events.push(match read {
                    ReadOutcome::Done { token, index } => {
                        format!("{id} may serve read {token} from index {index} on")
                    }
                    ReadOutcome::Failed { token } => format!("{id} fails read {token}"),
                });
            }
            let replica = self.replicas.get_mut(&id).unwrap();
            if ready.changes.iter().any(|change| matches!(change, Change::Whole { .. })) {
                replica.trusted();
            }
            replica.take_records(&mut ready);
            self.send(ready.messages);
            let now = self.clocks[&id];
            for load in &ready.log_loads {
                let replica = self.replicas.get_mut(&id).unwrap();
                let entries = replica.load(load);
                self.events.push(format!(
                    "{id} reads {} entries from {} on for {}",
                    entries.len(),
                    load.from,
                    load.to
                ));
                replica.raft.log_loaded(now, load.to, entries);
            }
            for needed in &ready.snapshots {
                let machine = self.replicas[&id].disk.checkpoint.clone();
                self.events.push(format!("{id} has a snapshot of {} for {}", machine.applied, needed.to));
                self.snapshots.insert((id, needed.to.0), machine);
            }
            if !self.held.contains(&id) {
                self.complete_writes(id);
            }
        }
        self.apply(id);
    }

    fn complete_writes(&mut self, id: u64) {
        loop {
            let now = self.clocks[&id];
            let held = self.held.contains(&id);
            let Some(replica) = self.replicas.get_mut(&id) else { return };
            let Some(front) = replica.writes.front() else { break };
            if held && front.has_records() {
                self.events.push(tell_write(id, front));
            }
            let write = replica.complete_write().unwrap();
            replica.raft.durable(now, write.number);
            self.send(write.messages_after);
        }
        if self.held.contains(&id) {
            self.pump(id);
        }
    }

    fn apply(&mut self, id: u64) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        for entry in replica.apply() {
            self.events.push(format!("{id} applies {}", tell_entry(&entry)));
        }
    }

    fn snapshot(&mut self, (from, to): Link, is_heard: bool) {
        let machine = self.snapshots.remove(&(from, to)).expect("a snapshot was asked for");
        let (now, position) = (self.clocks[&to], machine.position());
        let meta = machine.meta();
        let receiver = self.replicas.get_mut(&to).unwrap();
        let sender_now = self.clocks[&from];
        if receiver.raft.snapshot_begin(now, &meta) {
            self.pump(to);
            self.replicas.get_mut(&to).unwrap().install(machine, now);
            self.events.push(format!("{to} installs the snapshot of {}", position.index));
            let sender = &mut self.replicas.get_mut(&from).unwrap().raft;
            if is_heard {
                sender.snapshot_sent(sender_now, ReplicaId(to), position.index);
            } else {
                sender.snapshot_failed(sender_now, ReplicaId(to));
            }
        } else {
            self.events.push(format!("{to} has no use for the snapshot of {}", position.index));
            self.replicas.get_mut(&from).unwrap().raft.snapshot_failed(sender_now, ReplicaId(to));
        }
        self.pump(to);
        self.pump(from);
    }

    fn status(&mut self) {
        for (id, replica) in &self.replicas {
            let status = replica.raft.status();
            let mut line = format!("{id} {:?} term {}", status.role, status.term);
            line += &format!(" last {} durable {} commit {}", status.last, status.durable, status.commit);
            if let Some(suspect) = status.suspect {
                line += " suspect";
                line += if suspect.can_heal { "" } else { " for ever" };
            }
            if status.quiesced {
                line += " silent";
            }
            if status.configuration_set_by != Position::default() {
                line += &format!(" members {}", tell_members(replica.raft.configuration()));
            }
            if let Some(until) = status.lease_until {
                let left = until.since(self.clocks[id]);
                line += &format!(" lease {} ms", left.as_millis());
            }
            for follower in &status.followers {
                let mut notes = if follower.suspect { " suspect" } else { "" }.to_string();
                let learns = replica.raft.configuration().learners.contains(&follower.id);
                if learns && status.configuration_set_by != Position::default() {
                    let close = if follower.is_caught_up { "caught up" } else { "behind" };
                    notes += &format!(" {close} after {} rounds", follower.catch_up_rounds);
                }
                if !follower.is_member {
                    notes += " removed";
                }
                line +=
                    &format!(" [{} {:?} matched {}{notes}]", follower.id, follower.mode, follower.matched);
            }
            self.events.push(line);
        }
    }
}

fn tell_entry(entry: &Entry<Vec<u8>>) -> String {
    let what = match entry.kind {
        EntryKind::Command => String::from_utf8_lossy(&entry.payload).into_owned(),
        EntryKind::TermStart => "start of term".to_string(),
        EntryKind::Configuration => format!("members {}", tell_members(&membership_of(entry).configuration)),
    };
    format!("{}@{} {what}", entry.index, entry.term)
}

fn tell_members(configuration: &Configuration) -> String {
    let list = |ids: &BTreeSet<ReplicaId>| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ");
    let mut told = list(&configuration.voters);
    if configuration.is_joint() {
        told += &format!(" jointly with {}", list(&configuration.voters_outgoing));
    }
    if !configuration.learners.is_empty() {
        told += &format!(", learning {}", list(&configuration.learners));
    }
    if configuration.voters.is_empty() { "unknown".to_string() } else { told }
}

fn tell_write(id: u64, write: &Write) -> String {
    let mut line = format!("{id} has on disk:");
    if let Some(HardState { term, vote, .. }) = write.hard_state {
        line += &format!(" term {term}");
        line += &vote.map_or(String::new(), |vote| format!(" vote {vote}"));
    }
    if let Some(after) = write.truncate_after {
        line += &format!(" nothing after {after}");
    }
    for entry in &write.entries {
        line += &format!(" [{}]", tell_entry(entry));
    }
    line
}

fn tell_message(message: &Message<Vec<u8>>) -> String {
    let body = match &message.body {
        Body::PreVote { last_index, last_term } => {
            format!("could I win? my log ends at {last_index}@{last_term}")
        }
        Body::PreVoteReply { granted: true } => "you could win".to_string(),
        Body::PreVoteReply { granted: false } => "you could not win".to_string(),
        Body::Vote { last_index, last_term, transfer } => {
            let asked = if *transfer { ", the leader asked me to" } else { "" };
            format!("vote for me, my log ends at {last_index}@{last_term}{asked}")
        }
        Body::VoteReply { granted: true } => "my vote".to_string(),
        Body::VoteReply { granted: false } => "no vote".to_string(),
        Body::Append { previous_index, previous_term, commit, entries, .. } => {
            let entries: String = entries.iter().map(|entry| format!(" [{}]", tell_entry(entry))).collect();
            let entries = if entries.is_empty() { " nothing".to_string() } else { entries };
            format!("append after {previous_index}@{previous_term}:{entries}, commit {commit}")
        }
        Body::AppendReply { answer: AppendAnswer::Accepted { matched }, .. } => {
            format!("durable up to {matched}")
        }
        Body::AppendReply {
            answer: AppendAnswer::Rejected { rejected_index, hint_index, hint_term },
            ..
        } => {
            format!("nothing like {rejected_index} here, look at {hint_index}@{hint_term}")
        }
        Body::Heartbeat { commit, round } => format!("heartbeat {round}, commit {commit}"),
        Body::HeartbeatReply { round } => format!("heard {round}"),
        Body::TimeoutNow => "campaign now".to_string(),
        Body::Quiesce { last_index, .. } => format!("fall silent at {last_index}"),
        Body::QuiesceReply { agreed: true } => "silent".to_string(),
        Body::QuiesceReply { agreed: false } => "not yet silent".to_string(),
        Body::Wake => "wake".to_string(),
    };
    let marks = &message.marks;
    let suspect = match marks.suspect {
        None => "",
        Some(SuspectMark { needs_snapshot: false, .. }) => " (I am suspect)",
        Some(SuspectMark { needs_snapshot: true, .. }) => " (I am suspect, and need a snapshot)",
    };
    let heal = marks.heal.map_or(String::new(), |heal| format!(" (be whole at {})", heal.through));
    format!("{} -> {} term {}: {body}{suspect}{heal}", message.from, message.to, message.term)
}
