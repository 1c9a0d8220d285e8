//! Forming: how fresh nodes that name the same initial peers become one cluster, once.
//!
//! Pure: the driver carries messages and persists what it is told to (see [`Step`]). The protocol is a
//! unanimous vote with durable promises:
//!
//! 1. Every node asks all initial peers who they are (`Identify`) until all answer.
//! 2. The node whose address sorts first proposes, if *all* peers are empty, name the same peers, and have
//!    distinct names and uuids. It writes the record, with a random cluster id and everybody's uuid, to its
//!    own disk first, then sends it to all (`Form`).
//! 3. A node accepts, durably, only the first record that it is offered: from the expected proposer, naming
//!    this node's own uuid and every member as this node itself saw it.
//! 4. Once all have accepted, the record is final (`formed`). The proposer says so, and whoever asks a node
//!    that knows it learns it.
//!
//! # Why no split of the network yields two clusters
//!
//! A final record was accepted by every one of its members. A data directory (a uuid) accepts one record in its
//! life. Two final records over the same initial peers would need each of these nodes to have accepted both,
//! so every single one would have had to be wiped in between. A wiped node has a new uuid that no record
//! names, and as long as one of the others holds a record not all are empty, so nobody proposes: it waits, and says so.
//!
//! What this protocol gives up is progress when a data directory is lost half-way: the record that names it
//! can neither become final nor be replaced. The text says so; the directories hold nothing yet.

use std::collections::{BTreeMap, BTreeSet};

use krita_proto::v1;

use crate::identity::{ClusterId, ClusterRecord, ClusterState, Identity, MEMBERS_MAX, Member, NodeUuid};

/// What forming needs to know of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormingOptions {
    /// The cluster to be.
    pub cluster_name: String,
    /// By which others reach this node; must be one of `initial_peers`, unless that is empty.
    pub advertised_address: String,
    /// All nodes of the cluster to be, this one included; empty = this node alone.
    pub initial_peers: Vec<String>,
    /// Data shards.
    pub shard_count: u32,
    /// Wished replicas; a smaller cluster gets fewer.
    pub replication_factor: u32,
}

/// What to do next, in this order: persist, tell [`Forming::persisted`], then send.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Step {
    /// Store this durably before anything else, then call [`Forming::persisted`].
    pub persist: Option<ClusterState>,
    /// Then send these; answers come back by `on_identify_reply` and `on_form_reply`.
    pub requests: Vec<Request>,
}

/// A request to another node.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// To whom.
    pub address: String,
    /// What.
    pub body: RequestBody,
}

/// What to ask.
#[derive(Clone, PartialEq, Debug)]
pub enum RequestBody {
    /// Who are you, and are you empty?
    Identify,
    /// Accept this record, or learn that it is final.
    Form(v1::Form),
}

/// The answer to a `Form`: persist first, call [`Forming::persisted`], then reply.
#[derive(Clone, PartialEq, Debug)]
pub struct FormAnswer {
    /// Store this durably before the reply goes out. If that fails, reply nothing and stop.
    pub persist: Option<ClusterState>,
    /// The reply.
    pub reply: v1::FormReply,
}

/// Where forming stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormingStatus {
    /// One line for people, such as "waiting for quorum 1/3 ...".
    pub text: String,
    /// With whom this node cannot talk or agree, and why; sorted by address.
    pub problems: Vec<String>,
}

/// Why forming cannot even begin: the configuration is to be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct FormingError(pub String);

/// The forming of one cluster, as one node sees it. Kept for the life of the process: it goes on answering.
#[derive(Clone, Debug)]
pub struct Forming {
    options: FormingOptions,
    identity: Identity,
    /// All initial peers, this node included, sorted.
    peers: Vec<String>,
    /// What is durable here.
    stored: Option<ClusterState>,
    /// Handed out to be persisted; nothing may rest on it yet.
    pending: Option<ClusterState>,
    /// The last answer of each other peer.
    seen: BTreeMap<String, Seen>,
    /// Proposer only: the other members that have accepted the stored record since this process started.
    accepted: BTreeSet<String>,
    /// Proposer only: why a peer did not accept the record.
    refusals: BTreeMap<String, String>,
}

/// What is known of another peer.
#[derive(Clone, Debug)]
enum Seen {
    /// No answer to go by, and why.
    Silent(String),
    /// It answered.
    Node(SeenNode),
}

#[derive(Clone, Debug)]
struct SeenNode {
    node_id: String,
    node_uuid: NodeUuid,
    initial_peers: Vec<String>,
    record: Option<ClusterRecord>,
    formed: bool,
}

impl Forming {
    /// Begins, or goes on with what the data directory knows (`stored`).
    ///
    /// # Errors
    /// The configuration contradicts itself or what is stored; the text says what to correct.
    pub fn new(
        options: FormingOptions,
        identity: Identity,
        stored: Option<ClusterState>,
    ) -> Result<Self, FormingError> {
        let peers = sorted_peers(&options)?;
        if let Some(state) = &stored {
            check_stored(&options, &peers, &identity, state)?;
        }
        Ok(Self {
            options,
            identity,
            peers,
            stored,
            pending: None,
            seen: BTreeMap::new(),
            accepted: BTreeSet::new(),
            refusals: BTreeMap::new(),
        })
    }

    /// One round: call it at the start, after answers have come in, and about twice a second until
    /// [`Forming::formed`]. `fresh_cluster_id` is random; only a node that proposes uses it.
    ///
    /// Gives nothing to do while something is being persisted.
    pub fn step(&mut self, fresh_cluster_id: ClusterId) -> Step {
        if self.pending.is_some() {
            return Step::default();
        }
        let next = match &self.stored {
            Some(state) if state.formed => return Step::default(),
            Some(state) if self.all_accepted(&state.record) || self.someone_knows_it_final(&state.record) => {
                Some(ClusterState { record: state.record.clone(), formed: true })
            }
            Some(_) => None,
            None => self.proposal(fresh_cluster_id),
        };
        let mut requests = Vec::new();
        match next.as_ref().or(self.stored.as_ref()) {
            Some(state) if self.proposes(&state.record) => {
                let form = v1::Form { record: Some((&state.record).into()), commit: state.formed };
                for address in self.others() {
                    if state.formed || !self.accepted.contains(address) {
                        let body = RequestBody::Form(form.clone());
                        requests.push(Request { address: address.clone(), body });
                    }
                }
            }
            Some(_) | None => {}
        }
        if !next.as_ref().is_some_and(|state| state.formed) {
            let identify =
                |address: &String| Request { address: address.clone(), body: RequestBody::Identify };
            requests.extend(self.others().map(identify));
        }
        self.pending.clone_from(&next);
        Step { persist: next, requests }
    }

    /// What [`Forming::step`] or [`Forming::on_form`] asked to persist is durable now.
    ///
    /// # Panics
    /// If nothing was asked.
    pub fn persisted(&mut self) {
        let state = self.pending.take().expect("only what was asked for is persisted");
        if let Some(before) = &self.stored {
            assert_eq!(before.record, state.record, "a data directory accepts one record in its life");
        }
        self.stored = Some(state);
    }

    /// The record, once it is final and durable here.
    pub fn formed(&self) -> Option<&ClusterRecord> {
        self.stored.as_ref().filter(|state| state.formed).map(|state| &state.record)
    }

    /// Peers that say that the cluster is formed, without this data directory: it is too late to form it with them.
    /// Empty as long as this node has accepted a record itself, or may have.
    pub fn formed_without_this_node(&self) -> Vec<String> {
        if self.stored.is_some() || self.pending.is_some() {
            return Vec::new();
        }
        let is_without = |seen: &Seen| match seen {
            Seen::Node(SeenNode { record: Some(record), formed: true, .. }) => {
                record.cluster_name == self.options.cluster_name
                    && record.member_by_uuid(self.identity.node_uuid).is_none()
            }
            Seen::Node(_) | Seen::Silent(_) => false,
        };
        self.seen.iter().filter(|(_, seen)| is_without(seen)).map(|(address, _)| address.clone()).collect()
    }

    /// An answer to Identify, or why there is none.
    pub fn on_identify_reply(&mut self, address: &str, reply: Result<&v1::IdentifyReply, String>) {
        if !self.others().any(|other| other == address) {
            return;
        }
        let seen = match reply.and_then(|reply| self.read_identity(address, reply)) {
            Ok(node) => Seen::Node(node),
            Err(reason) => Seen::Silent(reason),
        };
        self.seen.insert(address.to_owned(), seen);
    }

    /// An answer to Form, or why there is none.
    pub fn on_form_reply(&mut self, address: &str, reply: Result<&v1::FormReply, String>) {
        let Some(state) = &self.stored else { return };
        if state.formed || !self.proposes(&state.record) || !self.others().any(|other| other == address) {
            return;
        }
        match reply {
            Ok(reply) if reply.accepted => {
                self.refusals.remove(address);
                self.accepted.insert(address.to_owned());
            }
            Ok(reply) => {
                self.refusals.insert(address.to_owned(), reply.reason.clone());
            }
            // Why it cannot be reached is known from Identify.
            Err(_) => {}
        }
    }

    /// Answers another node's Identify: what is durable here, nothing else. `boot_id` is this process's.
    pub fn on_identify(&self, boot_id: u64) -> v1::IdentifyReply {
        v1::IdentifyReply {
            node: Some(self.node_identity(boot_id)),
            initial_peers: self.peers.clone(),
            record: self.stored.as_ref().map(|state| (&state.record).into()),
            formed: self.formed().is_some(),
        }
    }

    /// Who this node is, for a hello. Cluster id and number are set once the cluster is formed.
    pub fn node_identity(&self, boot_id: u64) -> v1::NodeIdentity {
        let member = self.formed().and_then(|record| record.member_by_uuid(self.identity.node_uuid));
        v1::NodeIdentity {
            node_id: self.identity.node_id.clone(),
            node_uuid: self.identity.node_uuid.to_bytes(),
            cluster_id: self.formed().map(|record| record.cluster_id.to_bytes()).unwrap_or_default(),
            node_number: member.map_or(0, |member| member.number),
            advertised_address: self.options.advertised_address.clone(),
            boot_id,
        }
    }

    /// Answers another node's Form; `from` is who its hello said it is.
    pub fn on_form(&mut self, from: &v1::NodeIdentity, form: &v1::Form) -> FormAnswer {
        match self.judge(from, form) {
            Ok(persist) => {
                self.pending.clone_from(&persist);
                FormAnswer { persist, reply: v1::FormReply { accepted: true, reason: String::new() } }
            }
            Err(reason) => FormAnswer { persist: None, reply: v1::FormReply { accepted: false, reason } },
        }
    }

    /// Where it stands, for people.
    pub fn status(&self) -> FormingStatus {
        if let Some(record) = self.formed() {
            let text =
                format!("cluster \"{}\" is formed of {} nodes", record.cluster_name, record.members.len());
            return FormingStatus { text, problems: Vec::new() };
        }
        if let Some(problem) = self.own_loss() {
            return FormingStatus { text: problem.clone(), problems: vec![problem] };
        }
        let mut problems = Vec::new();
        let mut fine = 1;
        for address in self.others() {
            match self.obstacle(address).or_else(|| self.refusals.get(address).cloned()) {
                Some(problem) => problems.push(format!("{address}: {problem}")),
                None => fine += 1,
            }
        }
        let text = format!(
            "{} (a new cluster needs all of its initial peers)",
            waiting_for_quorum(fine, self.peers.len(), &problems)
        );
        FormingStatus { text, problems }
    }

    fn others(&self) -> impl Iterator<Item = &String> {
        self.peers.iter().filter(|address| **address != self.options.advertised_address)
    }

    fn proposes(&self, record: &ClusterRecord) -> bool {
        record.members.first().is_some_and(|first| first.node_uuid == self.identity.node_uuid)
    }

    fn all_accepted(&self, record: &ClusterRecord) -> bool {
        self.proposes(record) && self.others().all(|address| self.accepted.contains(address))
    }

    fn someone_knows_it_final(&self, record: &ClusterRecord) -> bool {
        self.seen.values().any(|seen| match seen {
            Seen::Node(node) => node.formed && node.record.as_ref() == Some(record),
            Seen::Silent(_) => false,
        })
    }

    /// The record that this node proposes, if it is the one to propose and nothing stands in the way.
    fn proposal(&self, cluster_id: ClusterId) -> Option<ClusterState> {
        let proposes = self.peers.first() == Some(&self.options.advertised_address);
        if !proposes || self.others().any(|address| self.obstacle(address).is_some()) {
            return None;
        }
        let members: Vec<Member> =
            (1..).zip(&self.peers).map(|(number, address)| self.member(number, address)).collect();
        let replication_factor = self.replication_factor();
        let record = ClusterRecord {
            cluster_name: self.options.cluster_name.clone(),
            cluster_id,
            members,
            shard_count: self.options.shard_count,
            replication_factor,
        };
        // Alone there is nobody to wait for.
        Some(ClusterState { record, formed: self.peers.len() == 1 })
    }

    fn member(&self, number: u32, address: &str) -> Member {
        let (node_id, node_uuid) = match self.seen.get(address) {
            Some(Seen::Node(node)) => (node.node_id.clone(), node.node_uuid),
            Some(Seen::Silent(_)) | None => {
                assert_eq!(address, self.options.advertised_address, "all others have been seen");
                (self.identity.node_id.clone(), self.identity.node_uuid)
            }
        };
        Member { number, node_id, node_uuid, address: address.to_owned() }
    }

    fn replication_factor(&self) -> u32 {
        // At most MEMBERS_MAX peers.
        self.options.replication_factor.min(self.peers.len() as u32)
    }

    /// Whether to accept a record: what to persist first, if anything, or why not.
    fn judge(&self, from: &v1::NodeIdentity, form: &v1::Form) -> Result<Option<ClusterState>, String> {
        if self.pending.is_some() {
            return Err("busy storing a record: ask again".to_owned());
        }
        let record = form.record.as_ref().ok_or("no record given")?;
        let record = ClusterRecord::try_from(record).map_err(|invalid| invalid.to_string())?;
        let proposer = record.members.first().ok_or("no members given")?;
        if from.node_uuid != proposer.node_uuid.0[..] || from.advertised_address != proposer.address {
            return Err(format!("only {} may propose this record", proposer.address));
        }
        match &self.stored {
            Some(state) if state.record != record => {
                Err(format!("already holds the record of cluster id {}", state.record.cluster_id))
            }
            Some(state) if form.commit && !state.formed => Ok(Some(ClusterState { record, formed: true })),
            Some(_) => Ok(None),
            None if form.commit => Err("has never accepted this record: its data directory is not the one \
                                        that did"
                .to_owned()),
            None => {
                self.judge_new(&record)?;
                Ok(Some(ClusterState { record, formed: false }))
            }
        }
    }

    /// A record must be the very one that this node would have proposed in the proposer's place.
    fn judge_new(&self, record: &ClusterRecord) -> Result<(), String> {
        let options = &self.options;
        if record.cluster_name != options.cluster_name {
            return Err(format!("belongs to cluster \"{}\" by its configuration", options.cluster_name));
        }
        if record.members.iter().map(|member| &member.address).ne(&self.peers) {
            return Err(format!("names other initial peers: {}", self.peers.join(", ")));
        }
        if record.shard_count != options.shard_count || record.replication_factor != self.replication_factor()
        {
            return Err(format!(
                "is configured with {} shards and replication factor {}",
                options.shard_count, options.replication_factor
            ));
        }
        for member in &record.members {
            let (node_id, node_uuid) = if member.address == options.advertised_address {
                (&self.identity.node_id, self.identity.node_uuid)
            } else {
                match self.seen.get(&member.address) {
                    Some(Seen::Node(node)) if node.record.as_ref().is_none_or(|held| held == record) => {
                        (&node.node_id, node.node_uuid)
                    }
                    Some(Seen::Node(_)) => {
                        return Err(format!("sees {} hold another record", member.address));
                    }
                    Some(Seen::Silent(reason)) => {
                        return Err(format!("cannot see {}: {reason}", member.address));
                    }
                    None => return Err(format!("has not seen {} yet", member.address)),
                }
            };
            if member.node_uuid != node_uuid || &member.node_id != node_id {
                return Err(format!(
                    "sees {} as \"{node_id}\" {node_uuid}, not as \"{}\" {}",
                    member.address, member.node_id, member.node_uuid
                ));
            }
        }
        Ok(())
    }

    fn read_identity(&self, address: &str, reply: &v1::IdentifyReply) -> Result<SeenNode, String> {
        let node = reply.node.as_ref().ok_or("its answer does not say who it is")?;
        let node_uuid = NodeUuid::from_bytes(&node.node_uuid).ok_or("its answer holds no uuid")?;
        if node_uuid == self.identity.node_uuid {
            return Err("leads back to this node, or to a copy of its data directory".to_owned());
        }
        if node.advertised_address != address {
            return Err(format!(
                "answers as {}: let its advertised_address and the peer list name it alike",
                node.advertised_address
            ));
        }
        let record = reply.record.as_ref().map(ClusterRecord::try_from).transpose();
        let record = record.map_err(|invalid| format!("its answer holds an invalid {invalid}"))?;
        if reply.initial_peers.len() > MEMBERS_MAX {
            return Err("its answer names too many peers".to_owned());
        }
        Ok(SeenNode {
            node_id: node.node_id.clone(),
            node_uuid,
            initial_peers: reply.initial_peers.clone(),
            formed: reply.formed && record.is_some(),
            record,
        })
    }

    /// Why the cluster cannot form with this peer as it was seen last; `None` if nothing stands in the way.
    fn obstacle(&self, address: &str) -> Option<String> {
        let node = match self.seen.get(address) {
            None => return Some("has not answered yet".to_owned()),
            Some(Seen::Silent(reason)) => return Some(reason.clone()),
            Some(Seen::Node(node)) => node,
        };
        match (&self.stored, &node.record) {
            (Some(own), held) => {
                let recorded = own.record.member_by_address(address)?;
                if recorded.node_uuid != node.node_uuid {
                    return Some(lost_directory(&recorded.node_id));
                }
                let other = held.as_ref().filter(|held| **held != own.record)?;
                Some(format!("holds the record of another cluster id, {}", other.cluster_id))
            }
            (None, Some(held)) => Some(format!(
                "already holds the record of cluster \"{}\" ({}), which waits for its other members or is \
                 formed",
                held.cluster_name, held.cluster_id
            )),
            (None, None) if node.initial_peers != self.peers => {
                Some(format!("names other initial peers: {}", node.initial_peers.join(", ")))
            }
            (None, None) => self.twin_of(address, node),
        }
    }

    /// Two peers with one name or one uuid cannot be told apart later.
    fn twin_of(&self, address: &str, node: &SeenNode) -> Option<String> {
        if node.node_id == self.identity.node_id {
            return Some(format!("has this node's node_id \"{}\": give each node its own", node.node_id));
        }
        self.seen.iter().find_map(|(other, seen)| match seen {
            Seen::Node(twin) if other != address => {
                let one = if twin.node_uuid == node.node_uuid {
                    "data directory (copied?)"
                } else if twin.node_id == node.node_id {
                    "node_id"
                } else {
                    return None;
                };
                Some(format!("has the same {one} as {other}: give each node its own"))
            }
            Seen::Node(_) | Seen::Silent(_) => None,
        })
    }

    /// Whether a peer's record knows this node's address under another uuid, or this uuid, of which this data
    /// directory knows nothing.
    fn own_loss(&self) -> Option<String> {
        if self.stored.is_some() || self.pending.is_some() {
            return None;
        }
        self.seen.values().find_map(|seen| {
            let Seen::Node(SeenNode { record: Some(record), formed, .. }) = seen else { return None };
            let member = record.member_by_address(&self.options.advertised_address)?;
            let lost = member.node_uuid != self.identity.node_uuid || *formed;
            lost.then(|| format!("this node, {}", lost_directory(&member.node_id)))
        })
    }
}

/// "waiting for quorum 1/3", with whom this node cannot talk, and why. For a cluster that is forming and for one
/// that has formed.
pub fn waiting_for_quorum(reachable: usize, total: usize, problems: &[String]) -> String {
    let mut text = format!("waiting for quorum {reachable}/{total}");
    for (position, problem) in problems.iter().enumerate() {
        text.push_str(if position == 0 { "; cannot talk to " } else { ", " });
        text.push_str(problem);
    }
    text
}

/// Whom a hello comes from, in a formed cluster. Only the data directory that the record names may take part.
///
/// # Errors
/// A text for people: why this node is not one of the cluster, or no longer.
pub fn recognise<'a>(record: &'a ClusterRecord, who: &v1::NodeIdentity) -> Result<&'a Member, String> {
    let uuid = NodeUuid::from_bytes(&who.node_uuid).ok_or("its hello holds no uuid")?;
    if let Some(member) = record.member_by_uuid(uuid) {
        // Before it learns that the cluster is formed, a member does not name the cluster id.
        let same = who.cluster_id.is_empty() || who.cluster_id == record.cluster_id.0[..];
        return if same {
            Ok(member)
        } else {
            Err(format!("\"{}\" names another cluster id", member.node_id))
        };
    }
    let known = record.member_by_address(&who.advertised_address);
    match known.or_else(|| record.members.iter().find(|member| member.node_id == who.node_id)) {
        Some(member) => Err(lost_directory(&member.node_id)),
        None => Err(format!("\"{}\" is not a member of this cluster", who.node_id)),
    }
}

fn lost_directory(node_id: &str) -> String {
    format!(
        "{node_id} lost its data directory: its uuid is not the recorded one, so it never votes in its place; once the \
         cluster is formed it joins as a new member"
    )
}

fn sorted_peers(options: &FormingOptions) -> Result<Vec<String>, FormingError> {
    let own = &options.advertised_address;
    let mut peers = options.initial_peers.clone();
    if peers.is_empty() {
        peers.push(own.clone());
    }
    peers.sort_unstable();
    if let Some(pair) = peers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(FormingError(format!("peers names {} twice", pair[0])));
    }
    if peers.len() > MEMBERS_MAX {
        return Err(FormingError(format!(
            "peers names {} nodes; at most {MEMBERS_MAX} are possible",
            peers.len()
        )));
    }
    if !peers.contains(own) {
        return Err(FormingError(format!(
            "this node's advertised_address {own} is not among peers ({}): set advertised_address to the entry \
             that is this node",
            peers.join(", ")
        )));
    }
    Ok(peers)
}

fn check_stored(
    options: &FormingOptions,
    peers: &[String],
    identity: &Identity,
    state: &ClusterState,
) -> Result<(), FormingError> {
    let record = &state.record;
    if record.cluster_name != options.cluster_name {
        return Err(FormingError(format!(
            "the data directory belongs to cluster \"{}\", but cluster_name is \"{}\": correct cluster_name or \
             data_directory",
            record.cluster_name, options.cluster_name
        )));
    }
    if record.member_by_uuid(identity.node_uuid).is_none() {
        return Err(FormingError(format!(
            "the data directory's cluster record does not name its own uuid {}: its files were mixed with \
             another node's; restore them from one copy",
            identity.node_uuid
        )));
    }
    let addresses = || record.members.iter().map(|member| &member.address);
    if !state.formed && addresses().ne(peers) {
        let addresses: Vec<_> = addresses().map(String::as_str).collect();
        return Err(FormingError(format!(
            "the cluster is half formed with the peers {}, but peers names {}: name those again, or empty the \
             data directories of all of them (they hold no data yet) and start anew",
            addresses.join(", "),
            peers.join(", ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
