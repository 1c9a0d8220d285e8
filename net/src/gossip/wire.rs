//! Between typed values and the messages of `gossip.proto`. What comes from a peer is checked before it is believed:
//! bytes of any kind lead to a value within bounds or to an [`Unfit`], never to a panic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::v1;

use super::member::{
    ACCUSERS_MAX, ClusterId, Health, INCARNATION_MAX, NodeUuid, Profile, Record, StampedVitals, State,
    Vitals, VitalsNews,
};
use super::message::{Body, Message, Page};

/// Most records in one message. A page of the shortest records stays below it.
pub const RECORDS_MAX: usize = 1024;

/// Longest cluster name, in bytes.
const CLUSTER_NAME_BYTES_MAX: usize = 255;

/// A gone node is remembered for less than this.
const GONE_MS_MAX: u64 = 400 * 24 * 3600 * 1000;

/// A message that no node of this version sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unfit gossip: {0}")]
pub struct Unfit(pub &'static str);

impl Message {
    /// For a frame.
    pub fn to_wire(&self) -> v1::Gossip {
        v1::Gossip {
            cluster_name: self.cluster_name.to_string(),
            cluster_id: self.cluster_id.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
            sender: Some(self.sender.to_wire()),
            news: self.news.iter().map(Record::to_wire).collect(),
            vitals: self.vitals.iter().map(VitalsNews::to_wire).collect(),
            body: self.body.to_wire(),
        }
    }

    /// Out of a frame.
    pub fn from_wire(message: v1::Gossip) -> Result<Self, Unfit> {
        if message.cluster_name.len() > CLUSTER_NAME_BYTES_MAX {
            return Err(Unfit("the cluster's name is too long"));
        }
        if message.news.len() > RECORDS_MAX || message.vitals.len() > RECORDS_MAX {
            return Err(Unfit("too many news"));
        }
        let sender = Record::from_wire(message.sender.ok_or(Unfit("no sender"))?)?;
        if !matches!(sender.state, State::Alive | State::Left) {
            return Err(Unfit("a sender that is neither alive nor leaving"));
        }
        Ok(Self {
            cluster_name: message.cluster_name.into(),
            cluster_id: optional_uuid(&message.cluster_id)?.map(ClusterId),
            sender,
            news: records(message.news)?,
            vitals: message.vitals.into_iter().map(VitalsNews::from_wire).collect::<Result<_, _>>()?,
            body: message.body.map_or(Ok(Body::News), Body::from_wire)?,
        })
    }
}

impl Body {
    fn to_wire(&self) -> Option<v1::gossip::Body> {
        use v1::gossip::Body as Wire;
        Some(match self {
            Self::News => return None,
            Self::Ping { sequence, target } => {
                Wire::Ping(v1::GossipPing { sequence: *sequence, target: optional_bytes(*target) })
            }
            Self::Ack { sequence, on_behalf_of } => {
                let on_behalf_of = optional_bytes(*on_behalf_of);
                Wire::Ack(v1::GossipAck { sequence: *sequence, on_behalf_of })
            }
            Self::PingFor { sequence, target, address } => Wire::PingFor(v1::GossipPingFor {
                sequence: *sequence,
                target: bytes(*target),
                address: address.clone(),
            }),
            Self::Nack { sequence } => Wire::Nack(v1::GossipNack { sequence: *sequence }),
            Self::NotHere { sequence } => Wire::NotHere(v1::GossipNotHere { sequence: *sequence }),
            Self::Exchange { sequence, records, wanted } => Wire::Exchange(v1::GossipExchange {
                sequence: *sequence,
                records: records.iter().map(Record::to_wire).collect(),
                wanted: wanted.is_some(),
                after: optional_bytes(wanted.and_then(|page| page.after)),
            }),
            Self::ExchangeReply { sequence, records, next } => Wire::ExchangeReply(v1::GossipExchangeReply {
                sequence: *sequence,
                records: records.iter().map(Record::to_wire).collect(),
                next: optional_bytes(*next),
            }),
            Self::Doubt { sequence, subject, incarnation } => Wire::Doubt(v1::GossipDoubt {
                sequence: *sequence,
                subject: bytes(*subject),
                incarnation: *incarnation,
            }),
            Self::DoubtReply { sequence, subject, incarnation, concurs } => {
                Wire::DoubtReply(v1::GossipDoubtReply {
                    sequence: *sequence,
                    subject: bytes(*subject),
                    incarnation: *incarnation,
                    concurs: *concurs,
                })
            }
        })
    }

    fn from_wire(body: v1::gossip::Body) -> Result<Self, Unfit> {
        use v1::gossip::Body as Wire;
        Ok(match body {
            Wire::Ping(it) => Self::Ping { sequence: it.sequence, target: optional_node(&it.target)? },
            Wire::Ack(it) => {
                Self::Ack { sequence: it.sequence, on_behalf_of: optional_node(&it.on_behalf_of)? }
            }
            Wire::PingFor(it) => {
                if it.address.is_empty() || it.address.len() > super::member::ADDRESS_BYTES_MAX {
                    return Err(Unfit("an address is empty or too long"));
                }
                Self::PingFor { sequence: it.sequence, target: node(&it.target)?, address: it.address }
            }
            Wire::Nack(it) => Self::Nack { sequence: it.sequence },
            Wire::NotHere(it) => Self::NotHere { sequence: it.sequence },
            Wire::Exchange(it) => Self::Exchange {
                sequence: it.sequence,
                wanted: it.wanted.then(|| optional_node(&it.after)).transpose()?.map(|after| Page { after }),
                records: records(it.records)?,
            },
            Wire::ExchangeReply(it) => Self::ExchangeReply {
                sequence: it.sequence,
                next: optional_node(&it.next)?,
                records: records(it.records)?,
            },
            Wire::Doubt(it) => Self::Doubt {
                sequence: it.sequence,
                subject: node(&it.subject)?,
                incarnation: incarnation(it.incarnation)?,
            },
            Wire::DoubtReply(it) => Self::DoubtReply {
                sequence: it.sequence,
                subject: node(&it.subject)?,
                incarnation: incarnation(it.incarnation)?,
                concurs: it.concurs,
            },
        })
    }
}

impl Record {
    fn to_wire(&self) -> v1::GossipRecord {
        v1::GossipRecord {
            node_uuid: bytes(self.uuid),
            incarnation: self.incarnation,
            state: match self.state {
                State::Alive => 0,
                State::Suspect => 1,
                State::Dead => 2,
                State::Left => 3,
            },
            profile: Some(self.profile.to_wire()),
            vitals: Some(self.vitals.to_wire()),
            accusers: self.accusers.iter().copied().map(bytes).collect(),
            gone_ms: u64::try_from(self.gone_for.as_millis()).unwrap_or(u64::MAX).min(GONE_MS_MAX),
        }
    }

    fn from_wire(record: v1::GossipRecord) -> Result<Self, Unfit> {
        let state = match record.state {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Dead,
            3 => State::Left,
            _ => return Err(Unfit("an unknown state")),
        };
        if record.accusers.len() > ACCUSERS_MAX {
            return Err(Unfit("too many accusers"));
        }
        if record.gone_ms > GONE_MS_MAX {
            return Err(Unfit("gone for too long"));
        }
        Ok(Self {
            uuid: node(&record.node_uuid)?,
            incarnation: incarnation(record.incarnation)?,
            state,
            profile: Arc::new(Profile::from_wire(record.profile.ok_or(Unfit("no profile"))?)?),
            vitals: StampedVitals::from_wire(record.vitals.ok_or(Unfit("no vitals"))?)?,
            accusers: record.accusers.iter().map(node).collect::<Result<_, _>>()?,
            gone_for: Duration::from_millis(record.gone_ms),
        })
    }

    /// What it takes in a message, without its tag and length.
    pub fn wire_bytes(&self) -> usize {
        prost::Message::encoded_len(&self.to_wire())
    }
}

impl Profile {
    fn to_wire(&self) -> v1::GossipProfile {
        v1::GossipProfile {
            node_id: self.node_id.clone(),
            node_number: self.node_number,
            address: self.address.clone(),
            zone: self.zone.clone(),
            capacity: self.capacity,
            software_version: self.software_version.clone(),
            feature_version: self.feature_version,
            boot_id: self.boot_id,
        }
    }

    fn from_wire(profile: v1::GossipProfile) -> Result<Self, Unfit> {
        let profile = Self {
            node_id: profile.node_id,
            node_number: profile.node_number,
            address: profile.address,
            zone: profile.zone,
            capacity: profile.capacity,
            software_version: profile.software_version,
            feature_version: profile.feature_version,
            boot_id: profile.boot_id,
        };
        profile.check().map_err(Unfit)?;
        Ok(profile)
    }
}

impl StampedVitals {
    fn to_wire(self) -> v1::GossipVitals {
        v1::GossipVitals {
            incarnation: self.incarnation,
            sequence: self.sequence,
            load_per_mille: self.vitals.load_per_mille,
            stored_bytes: self.vitals.stored_bytes,
            health: match self.vitals.health {
                Health::Well => 0,
                Health::Impaired => 1,
                Health::Failing => 2,
            },
            shard_map_epoch: self.vitals.shard_map_epoch,
            settings_epoch: self.vitals.settings_epoch,
        }
    }

    fn from_wire(vitals: v1::GossipVitals) -> Result<Self, Unfit> {
        Ok(Self {
            incarnation: incarnation(vitals.incarnation)?,
            sequence: vitals.sequence,
            vitals: Vitals {
                load_per_mille: vitals.load_per_mille,
                stored_bytes: vitals.stored_bytes,
                health: match vitals.health {
                    0 => Health::Well,
                    1 => Health::Impaired,
                    2 => Health::Failing,
                    _ => return Err(Unfit("an unknown health")),
                },
                shard_map_epoch: vitals.shard_map_epoch,
                settings_epoch: vitals.settings_epoch,
            },
        })
    }
}

impl VitalsNews {
    fn to_wire(&self) -> v1::GossipVitalsNews {
        v1::GossipVitalsNews { node_uuid: bytes(self.uuid), vitals: Some(self.vitals.to_wire()) }
    }

    fn from_wire(news: v1::GossipVitalsNews) -> Result<Self, Unfit> {
        let vitals = StampedVitals::from_wire(news.vitals.ok_or(Unfit("no vitals"))?)?;
        Ok(Self { uuid: node(&news.node_uuid)?, vitals })
    }
}

fn records(records: Vec<v1::GossipRecord>) -> Result<Vec<Record>, Unfit> {
    if records.len() > RECORDS_MAX {
        return Err(Unfit("too many records"));
    }
    records.into_iter().map(Record::from_wire).collect()
}

fn incarnation(number: u64) -> Result<u64, Unfit> {
    if number > INCARNATION_MAX { Err(Unfit("an incarnation is too high")) } else { Ok(number) }
}

fn bytes(uuid: NodeUuid) -> Bytes {
    Bytes::copy_from_slice(&uuid.0)
}

fn optional_bytes(uuid: Option<NodeUuid>) -> Bytes {
    uuid.map(bytes).unwrap_or_default()
}

fn node(bytes: &Bytes) -> Result<NodeUuid, Unfit> {
    optional_node(bytes)?.ok_or(Unfit("a uuid is missing"))
}

fn optional_node(bytes: &Bytes) -> Result<Option<NodeUuid>, Unfit> {
    Ok(optional_uuid(bytes)?.map(NodeUuid))
}

/// Empty: none. Neither empty nor 16 bytes: unfit.
fn optional_uuid(bytes: &Bytes) -> Result<Option<[u8; 16]>, Unfit> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.as_ref().try_into().map(Some).map_err(|_| Unfit("a uuid is not 16 bytes"))
}
