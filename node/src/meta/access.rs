//! Roles and tokens: who may do what. Only the room for them: judging requests is the business of [`crate::auth`].

use bytes::Bytes;

use crate::meta::refusal::Refusal;
use crate::meta::types::{NAME_BYTES_MAX, Version};

/// Most roles of a cluster.
pub(crate) const ROLES_MAX: usize = 256;
/// Most tokens of a cluster.
pub(crate) const TOKENS_MAX: usize = 4096;
/// Most grants of a role.
pub(crate) const GRANTS_MAX: usize = 64;
/// Most roles of a token.
pub(crate) const TOKEN_ROLES_MAX: usize = 16;
/// Longest key prefix of a grant, in bytes.
pub(crate) const PREFIX_BYTES_MAX: usize = 256;

/// What a grant allows, as bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rights(u32);

impl Rights {
    /// To read keys.
    pub const READ: Self = Self(1);
    /// To write and delete keys.
    pub const WRITE: Self = Self(2);
    /// To change the cluster.
    pub const ADMINISTER: Self = Self(4);

    /// Reads them from their bits; `None` for no right or an unknown one.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (1..=7).contains(&bits).then_some(Self(bits))
    }

    /// For a message.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is granted.
    pub fn include(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Rights on all keys that begin with a prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Grant {
    /// Empty = every key.
    pub key_prefix: Bytes,
    /// What is granted.
    pub rights: Rights,
}

/// What a token may do. Sorted by prefix; each prefix once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Role {
    /// When it last changed.
    pub version: Version,
    /// What it grants.
    pub grants: Vec<Grant>,
}

/// Who a client is. The secret itself is never here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// When it last changed.
    pub version: Version,
    /// SHA-256 of the secret.
    pub digest: [u8; 32],
    /// Names of roles, sorted, each once.
    pub roles: Vec<String>,
}

pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Refusal::Invalid("a name has 1 to 128 bytes"));
    }
    Ok(())
}

pub(crate) fn check_grants(grants: &[Grant]) -> Result<(), Refusal> {
    if grants.is_empty() || grants.len() > GRANTS_MAX {
        return Err(Refusal::Invalid("a role has 1 to 64 grants"));
    }
    if grants.iter().any(|grant| grant.key_prefix.len() > PREFIX_BYTES_MAX) {
        return Err(Refusal::Invalid("a key prefix has at most 256 bytes"));
    }
    if grants.windows(2).any(|pair| pair[0].key_prefix >= pair[1].key_prefix) {
        return Err(Refusal::Invalid("grants are sorted by distinct prefixes"));
    }
    Ok(())
}

pub(crate) fn check_token_roles(roles: &[String]) -> Result<(), Refusal> {
    if roles.is_empty() || roles.len() > TOKEN_ROLES_MAX {
        return Err(Refusal::Invalid("a token has 1 to 16 roles"));
    }
    if roles.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(Refusal::Invalid("a token's roles are sorted and distinct"));
    }
    Ok(())
}
