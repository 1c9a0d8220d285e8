//! The meta group's state as a replicated machine: what an entry of shard 0 holds, how it is applied, and what of it a
//! checkpoint and a snapshot carry.
//!
//! ```text
//! payload of a command entry of shard 0, little-endian
//! offset  size  field
//!      0     1  0x4d: no write command of a data shard begins like this
//!      1     1  format: 1
//!      2     4  CRC-32 of the rest
//!      6        the command (`super::wire`)
//!
//! the machine in a checkpoint
//!      0     1  format: 1
//!      1     8  state hash
//!      9        the state (`super::snapshot`)
//! ```
//!
//! The state is shared: what was handed out to the cores stays as it was, and the next command changes a copy.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_64;

use crate::meta::command::Command;
use crate::meta::refusal::{Effect, Outcome};
use crate::meta::snapshot::{META_BYTES_MAX, SnapshotError};
use crate::meta::state::MetaState;
use crate::meta::wire::CommandError;

const ENTRY_MAGIC: u8 = 0x4d;
const ENTRY_FORMAT: u8 = 1;
const ENTRY_HEADER_BYTES: usize = 6;

const MACHINE_FORMAT: u8 = 1;
const MACHINE_HEADER_BYTES: usize = 9;

/// Most bytes that an encoded machine takes.
pub(crate) const META_MACHINE_BYTES_MAX: usize = MACHINE_HEADER_BYTES + META_BYTES_MAX;

/// The machine of shard 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MetaMachine {
    state: Arc<MetaState>,
    /// Equal on equal replicas at the same index.
    state_hash: u64,
}

impl MetaMachine {
    /// The machine of a cluster that has just been formed.
    pub(crate) fn new(genesis: Arc<MetaState>) -> Self {
        Self { state: genesis, state_hash: 0 }
    }

    /// The state as of the last entry applied.
    pub(crate) fn state(&self) -> &Arc<MetaState> {
        &self.state
    }

    /// Rolling hash over every entry applied and what it did.
    pub(crate) fn state_hash(&self) -> u64 {
        self.state_hash
    }

    /// Applies the command of the entry at `index`.
    pub(crate) fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        let state = Arc::make_mut(&mut self.state);
        let outcome = state.apply(index, command);
        let effect = match &outcome {
            Ok(Effect::Changed) => 1,
            Ok(Effect::Unchanged) => 2,
            Ok(Effect::Joined { number, .. }) => 3 | u64::from(number.0) << 8,
            Ok(Effect::AlreadyMember { number }) => 4 | u64::from(number.0) << 8,
            Ok(Effect::JobStarted { job, .. }) => 5 | job.0 << 8,
            Err(_) => 6,
        };
        self.mix(index, effect, &command.encode());
        outcome
    }

    /// An entry that carries no command.
    pub(crate) fn pass(&mut self, index: u64) {
        Arc::make_mut(&mut self.state).pass(index);
    }

    fn mix(&mut self, index: u64, effect: u64, command: &[u8]) {
        let facts = [index, effect, self.state.map().epoch(), u64::from(self.state.feature().0)];
        let mut bytes = [0; 32];
        for (place, fact) in bytes.chunks_exact_mut(8).zip(facts) {
            place.copy_from_slice(&fact.to_le_bytes());
        }
        let hash = XxHash3_64::oneshot_with_seed(self.state_hash, &bytes);
        self.state_hash = XxHash3_64::oneshot_with_seed(hash, command);
    }

    /// The machine's part of a checkpoint or snapshot, at most [`META_MACHINE_BYTES_MAX`] bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let state = self.state.encode();
        let mut out = BytesMut::with_capacity(MACHINE_HEADER_BYTES + state.len());
        out.put_u8(MACHINE_FORMAT);
        out.put_u64_le(self.state_hash);
        out.put_slice(&state);
        out.freeze()
    }

    /// Reads what [`MetaMachine::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (header, state) =
            bytes.split_first_chunk::<MACHINE_HEADER_BYTES>().ok_or(SnapshotError("it is too short"))?;
        let [format, hash @ ..] = *header;
        if format != MACHINE_FORMAT {
            return Err(SnapshotError("its format is unknown to this version"));
        }
        Ok(Self { state: Arc::new(MetaState::decode(state)?), state_hash: u64::from_le_bytes(hash) })
    }
}

/// The payload of an entry that carries a command.
pub(crate) fn entry_of(command: &Command) -> Bytes {
    let command = command.encode();
    let mut out = BytesMut::with_capacity(ENTRY_HEADER_BYTES + command.len());
    out.put_u8(ENTRY_MAGIC);
    out.put_u8(ENTRY_FORMAT);
    out.put_u32_le(crc32fast::hash(&command));
    out.put_slice(&command);
    out.freeze()
}

/// The command's bytes in an entry's payload.
///
/// # Errors
/// It was damaged since it was made, or is of another version.
pub(crate) fn command_bytes(payload: &[u8]) -> Result<&[u8], CommandError> {
    let (header, command) = payload
        .split_first_chunk::<ENTRY_HEADER_BYTES>()
        .ok_or(CommandError::Unknown("an entry is too short"))?;
    let [magic, format, checksum @ ..] = *header;
    if magic != ENTRY_MAGIC || format != ENTRY_FORMAT {
        return Err(CommandError::Unknown("an entry has an unknown format"));
    }
    if u32::from_le_bytes(checksum) != crc32fast::hash(command) {
        return Err(CommandError::Unknown("its checksum does not match"));
    }
    Ok(command)
}

/// The command in an entry's payload.
///
/// # Errors
/// This version would not have written it. A replica that meets such an entry stops.
pub(crate) fn command_of(payload: &[u8]) -> Result<Command, CommandError> {
    Command::decode(command_bytes(payload)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::regions_of;
    use crate::meta::Setting;
    use crate::meta::tests::formed;
    use crate::meta::types::Version;

    fn set(value: u64, expected: u64) -> Command {
        Command::SetSetting { setting: Setting::MovesMax, value, expected: Version(expected) }
    }

    #[test]
    fn an_entry_survives_its_bytes_and_damage_is_seen() {
        let payload = entry_of(&set(7, 0));
        assert_eq!(command_of(&payload), Ok(set(7, 0)));
        assert!(regions_of(&payload).is_empty(), "the log finds no values in it");
        for position in 0..payload.len() {
            let mut damaged = payload.to_vec();
            damaged[position] ^= 1;
            assert!(command_of(&damaged).is_err(), "byte {position}");
            assert!(command_of(&payload[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn a_machine_goes_on_from_its_bytes_as_it_would_have() {
        let mut machine = MetaMachine::new(Arc::new(formed(3, 8, 3)));
        machine.pass(1);
        assert!(machine.apply(2, &set(7, 0)).is_ok());
        let handed_out = machine.state().clone();
        let mut restored = MetaMachine::decode(&machine.encode()).expect("its own bytes");
        assert_eq!(restored, machine);
        for machine in [&mut machine, &mut restored] {
            assert!(machine.apply(3, &set(8, 0)).is_err(), "it has changed meanwhile");
            assert!(machine.apply(4, &set(8, 2)).is_ok());
        }
        assert_eq!(restored, machine);
        assert_eq!(handed_out.settings().get(Setting::MovesMax), 7, "what was handed out stays");
        assert!(MetaMachine::decode(&machine.encode()[..20]).is_err());
    }

    #[test]
    fn the_hash_tells_what_was_applied() {
        let hash = |value: u64, refused: bool| {
            let mut machine = MetaMachine::new(Arc::new(formed(3, 8, 3)));
            let _ = machine.apply(1, &set(value, u64::from(refused)));
            machine.state_hash()
        };
        assert_eq!(hash(7, false), hash(7, false));
        assert_ne!(hash(7, false), hash(8, false));
        assert_ne!(hash(7, false), hash(7, true));
    }
}
