//! Forming under every kind of fault: one cluster or none, and one as soon as nothing is in the way.

use proptest::prelude::*;

use super::*;

fn address(node: usize) -> String {
    format!("10.0.0.{}:8080", node + 1)
}

fn options(node: usize, nodes: usize) -> FormingOptions {
    FormingOptions {
        cluster_name: "test".to_owned(),
        advertised_address: address(node),
        initial_peers: (0..nodes).rev().map(address).collect(),
        shard_count: 64,
        replication_factor: 3,
    }
}

fn identity(node: usize, life: u8) -> Identity {
    Identity {
        node_id: format!("node{}", node + 1),
        node_uuid: NodeUuid([node as u8 + 1, life, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    }
}

fn forming(node: usize, nodes: usize) -> Forming {
    Forming::new(options(node, nodes), identity(node, 0), None).expect("valid options")
}

#[derive(Clone, Debug)]
enum Message {
    Ask { from: usize, identity: v1::NodeIdentity, to: usize, body: RequestBody },
    Identified { from: usize, to: usize, reply: Result<v1::IdentifyReply, String> },
    Formed { from: usize, to: usize, reply: Result<v1::FormReply, String> },
}

struct Node {
    life: u8,
    disk: Option<ClusterState>,
    process: Option<Forming>,
    /// Being written, and what goes out once it is durable.
    writing: Option<(ClusterState, Vec<Message>)>,
}

/// A cluster whose messages wait in a bag: any of them may be the next, be lost, or come twice.
struct World {
    nodes: Vec<Node>,
    bag: Vec<Message>,
    cluster_ids: u8,
    /// Every record that was ever final on some disk.
    finals: Vec<ClusterRecord>,
}

impl World {
    fn new(count: usize) -> Self {
        let node = |node| Node { life: 0, disk: None, process: Some(forming(node, count)), writing: None };
        Self { nodes: (0..count).map(node).collect(), bag: Vec::new(), cluster_ids: 0, finals: Vec::new() }
    }

    fn step(&mut self, at: usize) {
        self.cluster_ids = self.cluster_ids.wrapping_add(1);
        let fresh = ClusterId([self.cluster_ids; 16]);
        let Some(process) = &mut self.nodes[at].process else { return };
        let step = process.step(fresh);
        let identity = process.node_identity(0);
        let ask = |request: Request| Message::Ask {
            from: at,
            identity: identity.clone(),
            to: (0..9).find(|node| address(*node) == request.address).expect("a peer"),
            body: request.body,
        };
        let messages = step.requests.into_iter().map(ask).collect();
        self.write_then_send(at, step.persist, messages);
    }

    fn write_then_send(&mut self, at: usize, persist: Option<ClusterState>, messages: Vec<Message>) {
        match persist {
            None => self.bag.extend(messages),
            Some(state) => {
                assert!(self.nodes[at].writing.is_none(), "one write at a time");
                self.nodes[at].writing = Some((state, messages));
            }
        }
    }

    fn finish_write(&mut self, at: usize) {
        let Some((state, messages)) = self.nodes[at].writing.take() else { return };
        self.make_durable(at, state);
        self.nodes[at].process.as_mut().expect("only a running node writes").persisted();
        self.bag.extend(messages);
    }

    fn make_durable(&mut self, at: usize, state: ClusterState) {
        if state.formed && !self.finals.contains(&state.record) {
            self.finals.push(state.record.clone());
        }
        if let Some(before) = &self.nodes[at].disk {
            assert_eq!(before.record, state.record, "an accepted record is never replaced");
            assert!(!before.formed || state.formed);
        }
        self.nodes[at].disk = Some(state);
    }

    fn crash(&mut self, at: usize, write_survives: bool) {
        if let Some((state, _)) = self.nodes[at].writing.take()
            && write_survives
        {
            self.make_durable(at, state);
        }
        self.nodes[at].process = None;
    }

    fn wipe(&mut self, at: usize) {
        self.crash(at, false);
        self.nodes[at].life += 1;
        self.nodes[at].disk = None;
    }

    fn start(&mut self, at: usize) {
        let count = self.nodes.len();
        let node = &mut self.nodes[at];
        if node.process.is_none() {
            let forming = Forming::new(options(at, count), identity(at, node.life), node.disk.clone());
            node.process = Some(forming.expect("what a node stored does not stop it from starting"));
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Ask { from, identity, to, body } => self.ask(from, &identity, to, body),
            Message::Identified { from, to, reply } => {
                if let Some(process) = &mut self.nodes[to].process {
                    process.on_identify_reply(&address(from), reply.as_ref().map_err(Clone::clone));
                }
            }
            Message::Formed { from, to, reply } => {
                if let Some(process) = &mut self.nodes[to].process {
                    process.on_form_reply(&address(from), reply.as_ref().map_err(Clone::clone));
                }
            }
        }
    }

    fn ask(&mut self, asker: usize, identity: &v1::NodeIdentity, at: usize, body: RequestBody) {
        let (from, to) = (at, asker);
        let down = || "connection refused".to_owned();
        match (&mut self.nodes[at].process, body) {
            (Some(process), RequestBody::Identify) => {
                let reply = Ok(process.on_identify(0));
                self.bag.push(Message::Identified { from, to, reply });
            }
            (Some(process), RequestBody::Form(form)) => {
                let answer = process.on_form(identity, &form);
                self.write_then_send(
                    at,
                    answer.persist,
                    vec![Message::Formed { from, to, reply: Ok(answer.reply) }],
                );
            }
            (None, RequestBody::Identify) => {
                self.bag.push(Message::Identified { from, to, reply: Err(down()) })
            }
            (None, RequestBody::Form(_)) => self.bag.push(Message::Formed { from, to, reply: Err(down()) }),
        }
    }

    /// Nothing fails any more.
    fn settle(&mut self) {
        for _ in 0..8 {
            for at in 0..self.nodes.len() {
                self.start(at);
                self.finish_write(at);
                self.step(at);
                self.finish_write(at);
            }
            while !self.bag.is_empty() {
                let message = self.bag.remove(0);
                self.deliver(message);
                for at in 0..self.nodes.len() {
                    self.finish_write(at);
                }
            }
        }
    }

    fn all_formed(&self) -> bool {
        let formed = |node: &Node| node.process.as_ref().is_some_and(|process| process.formed().is_some());
        self.nodes.iter().all(formed) && self.finals.len() == 1
    }

    fn status(&self, at: usize) -> FormingStatus {
        self.nodes[at].process.as_ref().expect("runs").status()
    }
}

#[derive(Clone, Debug)]
enum Event {
    Step(usize),
    FinishWrite(usize),
    Deliver(prop::sample::Index),
    DeliverTwice(prop::sample::Index),
    Lose(prop::sample::Index),
    Crash(usize, bool),
    Start(usize),
    Wipe(usize),
}

fn any_event(wipes: bool) -> impl Strategy<Value = Event> {
    let node = || 0..5usize;
    let wipe_weight = u32::from(wipes);
    prop_oneof![
        12 => node().prop_map(Event::Step),
        16 => node().prop_map(Event::FinishWrite),
        60 => any::<prop::sample::Index>().prop_map(Event::Deliver),
        4 => any::<prop::sample::Index>().prop_map(Event::DeliverTwice),
        4 => any::<prop::sample::Index>().prop_map(Event::Lose),
        2 => (node(), any::<bool>()).prop_map(|(node, survives)| Event::Crash(node, survives)),
        4 => node().prop_map(Event::Start),
        wipe_weight => node().prop_map(Event::Wipe),
    ]
}

/// Runs the events; the last node is never wiped.
fn run(count: usize, events: Vec<Event>) -> World {
    let mut world = World::new(count);
    for event in events {
        match event {
            Event::Step(at) => world.step(at % count),
            Event::FinishWrite(at) => world.finish_write(at % count),
            Event::Deliver(index) if !world.bag.is_empty() => {
                let message = world.bag.swap_remove(index.index(world.bag.len()));
                world.deliver(message);
            }
            Event::DeliverTwice(index) if !world.bag.is_empty() => {
                let message = world.bag[index.index(world.bag.len())].clone();
                world.deliver(message);
            }
            Event::Lose(index) if !world.bag.is_empty() => {
                world.bag.swap_remove(index.index(world.bag.len()));
            }
            Event::Deliver(_) | Event::DeliverTwice(_) | Event::Lose(_) => {}
            Event::Crash(at, survives) => world.crash(at % count, survives),
            Event::Start(at) => world.start(at % count),
            Event::Wipe(at) if at % count != count - 1 => world.wipe(at % count),
            Event::Wipe(_) => {}
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn crashes_and_a_bad_network_delay_forming_and_nothing_else(
        count in 1..5usize,
        events in prop::collection::vec(any_event(false), 0..400),
    ) {
        let mut world = run(count, events);
        prop_assert!(world.finals.len() <= 1);
        world.settle();
        prop_assert!(world.all_formed(), "{:?}", (0..count).map(|at| world.status(at)).collect::<Vec<_>>());
        let numbers: Vec<u32> = world.finals[0].members.iter().map(|member| member.number).collect();
        prop_assert_eq!(numbers, (1..=count as u32).collect::<Vec<_>>());
    }

    /// Whoever is wiped, whenever: as long as one data directory survives there are never two clusters, and a wiped
    /// node never takes part in one that was formed before.
    #[test]
    fn wiped_nodes_never_make_a_second_cluster(
        count in 2..5usize,
        events in prop::collection::vec(any_event(true), 0..600),
    ) {
        let mut world = run(count, events);
        prop_assert!(world.finals.len() <= 1, "{:?}", world.finals);
        world.settle();
        prop_assert!(world.finals.len() <= 1);
        for (at, node) in world.nodes.iter().enumerate() {
            let Some(state) = &node.disk else { continue };
            prop_assert!(state.record.member_by_uuid(identity(at, node.life).node_uuid).is_some());
        }
    }
}

#[test]
fn a_single_node_forms_at_once() {
    for peers in [Vec::new(), vec![address(0)]] {
        let mut alone =
            Forming::new(FormingOptions { initial_peers: peers, ..options(0, 1) }, identity(0, 0), None)
                .expect("valid");
        let step = alone.step(ClusterId([9; 16]));
        let state = step.persist.expect("a record");
        assert!(state.formed && step.requests.is_empty());
        assert_eq!((state.record.members.len(), state.record.replication_factor), (1, 1));
        assert_eq!(alone.formed(), None, "not before it is durable");
        alone.persisted();
        assert_eq!(alone.formed(), Some(&state.record));
    }
}

#[test]
fn without_all_peers_nobody_proposes_and_the_text_says_who_is_missing() {
    let mut world = World::new(3);
    world.crash(2, false);
    for _ in 0..20 {
        (0..2).for_each(|at| world.step(at));
        while let Some(message) = world.bag.pop() {
            world.deliver(message);
        }
    }
    assert!(world.nodes.iter().all(|node| node.disk.is_none() && node.writing.is_none()));
    let status = world.status(0);
    assert!(
        status.text.starts_with("waiting for quorum 2/3; cannot talk to 10.0.0.3:8080: connection refused"),
        "{}",
        status.text
    );
    assert!(forming(0, 3).status().text.starts_with("waiting for quorum 1/3"));
}

#[test]
fn a_wiped_member_waits_and_both_sides_say_so() {
    let mut world = World::new(3);
    world.settle();
    assert!(world.all_formed());
    world.wipe(1);
    world.settle();
    assert_eq!(world.nodes[1].disk, None);
    let text = world.status(1).text;
    assert!(text.contains("node2 lost its data directory"), "{text}");
    let process = world.nodes[1].process.as_ref().expect("runs");
    assert_eq!(process.formed_without_this_node(), [address(0), address(2)]);
    assert!(world.nodes[0].process.as_ref().expect("runs").formed_without_this_node().is_empty());
    let record = world.finals[0].clone();
    let wiped = world.nodes[1].process.as_ref().expect("runs").node_identity(5);
    let refused = recognise(&record, &wiped).expect_err("wiped");
    assert!(refused.contains("node2 lost its data directory"), "{refused}");
    let healthy = world.nodes[2].process.as_ref().expect("runs").node_identity(5);
    assert_eq!(recognise(&record, &healthy).map(|member| member.number), Ok(3));
    let stranger =
        v1::NodeIdentity { node_id: "x".into(), node_uuid: vec![9; 16].into(), ..Default::default() };
    assert!(recognise(&record, &stranger).expect_err("stranger").contains("not a member"));
}

#[test]
fn only_the_expected_proposer_and_only_what_was_seen_is_accepted() {
    let mut world = World::new(3);
    for at in [0, 1, 2] {
        world.step(at);
        while let Some(message) = world.bag.pop() {
            world.deliver(message);
        }
    }
    world.step(0);
    let (state, _) = world.nodes[0].writing.clone().expect("all were seen, so the first proposes");
    let form = |record: &ClusterRecord, commit| v1::Form { record: Some(record.into()), commit };
    let [first, second] =
        [0, 1].map(|at: usize| world.nodes[at].process.as_ref().expect("runs").node_identity(0));
    let third = world.nodes[2].process.as_ref().expect("runs").clone();
    let refused = |from: &v1::NodeIdentity, form: &v1::Form| {
        let answer = third.clone().on_form(from, form);
        assert_eq!((answer.persist, answer.reply.accepted), (None, false), "{form:?}");
        answer.reply.reason
    };
    assert!(refused(&second, &form(&state.record, false)).contains("only 10.0.0.1:8080"));
    assert!(refused(&first, &form(&state.record, true)).contains("never accepted"));
    assert!(refused(&first, &v1::Form::default()).contains("no record"));
    let altered = |alter: &dyn Fn(&mut ClusterRecord)| {
        let mut record = state.record.clone();
        alter(&mut record);
        record
    };
    for (record, reason) in [
        (altered(&|record| record.cluster_name = "other".into()), "cluster \"test\""),
        (altered(&|record| record.shard_count = 65), "64 shards"),
        (altered(&|record| record.replication_factor = 1), "replication factor"),
        (altered(&|record| record.members[2].node_uuid = NodeUuid([7; 16])), "sees 10.0.0.3:8080"),
        (altered(&|record| record.members[1].node_uuid = NodeUuid([7; 16])), "sees 10.0.0.2:8080"),
        (altered(&|record| drop(record.members.remove(2))), "other initial peers"),
    ] {
        let refusal = refused(&first, &form(&record, false));
        let shrunk = record.members.len() < 3 && refusal.contains("replication factor");
        assert!(refusal.contains(reason) || shrunk, "{refusal}");
    }
    let mut accepting = third.clone();
    let answer = accepting.on_form(&first, &form(&state.record, false));
    assert!(answer.reply.accepted && answer.persist.is_some());
    assert!(
        !accepting.on_form(&first, &form(&state.record, false)).reply.accepted,
        "not before it is durable"
    );
    accepting.persisted();
    let again = accepting.on_form(&first, &form(&state.record, false));
    assert_eq!((again.persist, again.reply.accepted), (None, true));
    let other = altered(&|record| record.cluster_id = ClusterId([8; 16]));
    assert!(!accepting.on_form(&first, &form(&other, false)).reply.accepted, "one record in a life");
}

#[test]
fn doubt_about_oneself_is_an_error() {
    let stranger = FormingOptions { advertised_address: "10.0.0.9:8080".into(), ..options(0, 3) };
    let error = Forming::new(stranger, identity(0, 0), None).expect_err("not in the list");
    assert!(error.to_string().contains("advertised_address"), "{error}");
    let twice = FormingOptions { initial_peers: vec![address(0), address(0)], ..options(0, 2) };
    assert!(Forming::new(twice, identity(0, 0), None).expect_err("twice").to_string().contains("twice"));
    let mut world = World::new(2);
    world.settle();
    let stored = world.nodes[0].disk.clone();
    let other_name = FormingOptions { cluster_name: "other".into(), ..options(0, 2) };
    assert!(Forming::new(other_name, identity(0, 0), stored.clone()).is_err());
    assert!(Forming::new(options(0, 2), identity(0, 1), stored).is_err(), "identity of another life");
}
