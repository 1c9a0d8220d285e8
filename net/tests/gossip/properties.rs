//! Whatever comes, in whatever order and at whatever times: no panic, all bounded, and the order does not matter.

use std::sync::Arc;
use std::time::Duration;

use krita_net::gossip::{
    Body, Cluster, Gossip, Health, INCARNATION_MAX, Member, Message, NodeUuid, Options, Page, Profile,
    Record, StampedVitals, Start, State, Vitals, VitalsNews,
};
use krita_proto::v1;
use krita_runtime::Instant;
use proptest::prelude::*;
use prost::Message as _;

fn uuid() -> impl Strategy<Value = NodeUuid> {
    (1_u8..9).prop_map(|byte| NodeUuid([byte; 16]))
}

fn incarnation() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0_u64..6, 1 => Just(INCARNATION_MAX)]
}

fn profile() -> impl Strategy<Value = Profile> {
    (0_u64..3, 0_u32..2, 1_u8..9).prop_map(|(boot_id, node_number, name)| Profile {
        node_id: format!("n{name}"),
        node_number,
        address: format!("n{name}:1"),
        boot_id,
        ..Profile::default()
    })
}

fn vitals() -> impl Strategy<Value = StampedVitals> {
    let health = prop_oneof![Just(Health::Well), Just(Health::Impaired), Just(Health::Failing)];
    (incarnation(), 0_u32..4, 0_u32..3, health).prop_map(|(incarnation, sequence, load_per_mille, health)| {
        StampedVitals {
            incarnation,
            sequence,
            vitals: Vitals { load_per_mille, health, ..Vitals::default() },
        }
    })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Dead), Just(State::Left)]
}

fn record() -> impl Strategy<Value = Record> {
    let accusers = prop::collection::vec(uuid(), 0..4);
    // Below the time after which they are forgotten: who is gone for longer is not taken in, only kept.
    let gone = 0_u64..3_500_000;
    (uuid(), incarnation(), state(), profile(), vitals(), accusers, gone).prop_map(
        |(uuid, incarnation, state, profile, vitals, accusers, gone_ms)| Record {
            uuid,
            incarnation,
            state,
            profile: Arc::new(profile),
            vitals,
            accusers,
            gone_for: Duration::from_millis(gone_ms),
        },
    )
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec(record(), 0..6)
}

fn body() -> impl Strategy<Value = Body> {
    let sequence = || 0_u64..20;
    prop_oneof![
        Just(Body::News),
        (sequence(), prop::option::of(uuid())).prop_map(|(sequence, target)| Body::Ping { sequence, target }),
        (sequence(), prop::option::of(uuid()))
            .prop_map(|(sequence, on_behalf_of)| Body::Ack { sequence, on_behalf_of }),
        (sequence(), uuid()).prop_map(|(sequence, target)| Body::PingFor {
            sequence,
            target,
            address: "x:1".into()
        }),
        sequence().prop_map(|sequence| Body::Nack { sequence }),
        sequence().prop_map(|sequence| Body::NotHere { sequence }),
        (sequence(), records(), prop::option::of(prop::option::of(uuid()))).prop_map(
            |(sequence, records, wanted)| {
                let wanted = wanted.map(|after| Page { after });
                Body::Exchange { sequence, records, wanted }
            }
        ),
        (sequence(), records(), prop::option::of(uuid()))
            .prop_map(|(sequence, records, next)| Body::ExchangeReply { sequence, records, next }),
        (sequence(), uuid(), incarnation()).prop_map(|(sequence, subject, incarnation)| Body::Doubt {
            sequence,
            subject,
            incarnation
        }),
        (sequence(), uuid(), incarnation(), any::<bool>()).prop_map(
            |(sequence, subject, incarnation, concurs)| Body::DoubtReply {
                sequence,
                subject,
                incarnation,
                concurs
            }
        ),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let vitals_news = (uuid(), vitals()).prop_map(|(uuid, vitals)| VitalsNews { uuid, vitals });
    let vitals_news = prop::collection::vec(vitals_news, 0..4);
    (record(), any::<bool>(), records(), vitals_news, body()).prop_map(
        |(sender, left, news, vitals, body)| {
            let state = if left { State::Left } else { State::Alive };
            Message {
                cluster_name: "world".into(),
                cluster_id: None,
                sender: Record { state, ..sender },
                news,
                vitals,
                body,
            }
        },
    )
}

/// One thing that happens to a node.
#[derive(Clone, Debug)]
enum Act {
    Step(Box<Message>),
    Tick,
    Late(u64),
    Vitals(u32),
    Break(NodeUuid),
    Leave,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => message().prop_map(|message| Act::Step(Box::new(message))),
        8 => Just(Act::Tick),
        2 => (0_u64..20_000).prop_map(Act::Late),
        1 => (0_u32..9).prop_map(Act::Vitals),
        1 => uuid().prop_map(Act::Break),
        1 => (0_u8..20).prop_map(|it| if it == 0 { Act::Leave } else { Act::Tick }),
    ]
}

/// A node of uuid 1, with room for five others.
fn node(seed: u64) -> Gossip {
    let start = Start {
        cluster: Cluster { name: "world".into(), id: None },
        uuid: NodeUuid([1; 16]),
        profile: Profile { node_id: "n1".into(), address: "n1:1".into(), boot_id: 9, ..Profile::default() },
        incarnation: 1,
        seed,
    };
    let options = Options { members_max: 5, ..Options::default() };
    let mut gossip = Gossip::new(Instant::from_nanoseconds(1), options, start).expect("a fit profile");
    gossip.join(vec!["n2:1".into(), "n3:1".into()]);
    gossip
}

/// What is known of a node.
type Known = (NodeUuid, u64, State, Arc<Profile>, StampedVitals, Option<Instant>);

/// What is known, without what a node found out by itself.
fn known(gossip: &Gossip) -> Vec<Known> {
    let view = |member: &Member| {
        let Member { uuid, incarnation, state, profile, vitals, gone_at, .. } = member.clone();
        (uuid, incarnation, state, profile, vitals, gone_at)
    };
    gossip.members().map(view).collect()
}

proptest! {
    #[test]
    fn any_life_is_survived(seed in any::<u64>(), acts in prop::collection::vec(act(), 0..120)) {
        let mut gossip = node(seed);
        let mut now = Instant::from_nanoseconds(1_000_000);
        let mut incarnation = gossip.own().incarnation;
        for act in acts {
            match act {
                Act::Step(message) => {
                    let from = message.sender.uuid;
                    let refused = gossip.step(now, from, *message).is_err();
                    prop_assert_eq!(refused, from == NodeUuid([1; 16]));
                }
                Act::Tick => {
                    now = gossip.next_tick().max(now);
                    gossip.tick(now);
                }
                Act::Late(milliseconds) => {
                    now = now + Duration::from_millis(milliseconds);
                    gossip.tick(now);
                }
                Act::Vitals(load_per_mille) => {
                    gossip.set_vitals(now, Vitals { load_per_mille, ..Vitals::default() });
                }
                Act::Break(uuid) => gossip.suspect_connection(now, uuid),
                Act::Leave => gossip.leave(now),
            }
            prop_assert!(gossip.own().incarnation >= incarnation, "it only grows");
            incarnation = gossip.own().incarnation;
            prop_assert!(gossip.members().count() <= 5);
            for outgoing in gossip.take_messages() {
                prop_assert!(outgoing.message.to_wire().encoded_len() <= 40 * 1024);
            }
            gossip.take_events();
        }
        // Left to itself it comes to rest: no time in which it wants to do endlessly much.
        gossip.tick(now);
        let before = now;
        let mut ticks = 0;
        while now.since(before) < Duration::from_secs(10) {
            now = gossip.next_tick().max(now);
            gossip.tick(now);
            ticks += 1;
            prop_assert!(ticks < 2_000, "it wakes without end");
        }
    }

    #[test]
    fn the_order_of_news_does_not_matter(
        seed in any::<u64>(),
        told in prop::collection::vec(record(), 0..12),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        // With room for all, since what has no room depends on who came first.
        let told: Vec<Record> = told.into_iter().filter(|it| it.uuid.0[0] < 7 && it.uuid.0[0] > 1).collect();
        let now = Instant::from_nanoseconds(1_000_000_000_000_000);
        let hear = |gossip: &mut Gossip, record: &Record| {
            let sender = Record { uuid: NodeUuid([2; 16]), incarnation: 0, state: State::Alive, ..record.clone() };
            let sender = Record { profile: Arc::default(), vitals: StampedVitals::default(), ..sender };
            let profile = Profile { address: "a:1".into(), ..Profile::default() };
            let sender = Record { profile: Arc::new(profile), accusers: vec![], ..sender };
            let message = Message {
                cluster_name: "world".into(),
                cluster_id: None,
                sender,
                news: vec![record.clone()],
                vitals: vec![],
                body: Body::News,
            };
            gossip.step(now, NodeUuid([2; 16]), message).expect("it is taken in");
        };
        let (mut one, mut two) = (node(seed), node(seed.wrapping_add(1)));
        for record in &told {
            hear(&mut one, record);
        }
        // In another order, some of them often.
        for pick in picks.iter().filter(|_| !told.is_empty()) {
            hear(&mut two, pick.get(&told));
        }
        for record in told.iter().rev() {
            hear(&mut two, record);
        }
        prop_assert_eq!(known(&one), known(&two));
        for record in &told {
            hear(&mut one, record);
        }
        prop_assert_eq!(known(&one), known(&two), "what is known already changes nothing");
    }

    #[test]
    fn messages_come_through_their_bytes(message in message()) {
        let bytes = message.to_wire().encode_to_vec();
        let decoded = v1::Gossip::decode(bytes.as_slice()).expect("it was encoded");
        prop_assert_eq!(Message::from_wire(decoded).expect("it is fit"), message);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(decoded) = v1::Gossip::decode(bytes.as_slice()) {
            let _ = Message::from_wire(decoded);
        }
    }

    #[test]
    fn damaged_messages_are_survived(
        message in message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        now in any::<u64>(),
    ) {
        let mut bytes = message.to_wire().encode_to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(decoded) = v1::Gossip::decode(bytes.as_slice())
            && let Ok(message) = Message::from_wire(decoded)
        {
            let mut gossip = node(now);
            let from = message.sender.uuid;
            let _ = gossip.step(Instant::from_nanoseconds(now), from, message);
            gossip.tick(gossip.next_tick());
            gossip.take_messages();
        }
    }
}
