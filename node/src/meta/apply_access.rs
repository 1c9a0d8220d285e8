//! Applying what concerns roles and tokens.

use crate::meta::access::{
    Grant, ROLES_MAX, Role, TOKENS_MAX, Token, check_grants, check_name, check_token_roles,
};
use crate::meta::refusal::{Effect, Outcome, Refusal};
use crate::meta::state::{MetaState, check_version};
use crate::meta::types::Version;

impl MetaState {
    pub(crate) fn put_role(
        &mut self,
        at: Version,
        name: &str,
        expected: Version,
        grants: &[Grant],
    ) -> Outcome {
        check_version(expected, self.roles.get(name).map_or(Version(0), |role| role.version))?;
        check_name(name)?;
        check_grants(grants)?;
        if self.roles.len() >= ROLES_MAX && !self.roles.contains_key(name) {
            return Err(Refusal::Full("roles"));
        }
        self.roles.insert(name.to_owned(), Role { version: at, grants: grants.to_vec() });
        Ok(Effect::Changed)
    }

    pub(crate) fn delete_role(&mut self, name: &str, expected: Version) -> Outcome {
        let role = self.roles.get(name).ok_or(Refusal::UnknownName("role"))?;
        check_version(expected, role.version)?;
        let has_role = |token: &Token| token.roles.iter().any(|role| role == name);
        if let Some((token, _)) = self.tokens.iter().find(|(_, token)| has_role(token)) {
            return Err(Refusal::RoleInUse(token.clone()));
        }
        self.roles.remove(name);
        Ok(Effect::Changed)
    }

    pub(crate) fn put_token(
        &mut self,
        at: Version,
        name: &str,
        expected: Version,
        (digest, roles): (&[u8; 32], &[String]),
    ) -> Outcome {
        check_version(expected, self.tokens.get(name).map_or(Version(0), |token| token.version))?;
        check_name(name)?;
        check_token_roles(roles)?;
        if roles.iter().any(|role| !self.roles.contains_key(role)) {
            return Err(Refusal::UnknownName("role"));
        }
        let same = |(other, token): (&String, &Token)| other != name && token.digest == *digest;
        if self.tokens.iter().any(same) {
            return Err(Refusal::Invalid("another token has this digest"));
        }
        if self.tokens.len() >= TOKENS_MAX && !self.tokens.contains_key(name) {
            return Err(Refusal::Full("tokens"));
        }
        self.tokens.insert(name.to_owned(), Token { version: at, digest: *digest, roles: roles.to_vec() });
        Ok(Effect::Changed)
    }

    pub(crate) fn delete_token(&mut self, name: &str, expected: Version) -> Outcome {
        let token = self.tokens.get(name).ok_or(Refusal::UnknownName("token"))?;
        check_version(expected, token.version)?;
        self.tokens.remove(name);
        Ok(Effect::Changed)
    }
}
