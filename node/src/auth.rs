//! Tokens: how a client shows that it may. Opaque, random, shown once, kept as SHA-256 digests.
//!
//! A token carries 256 random bits, so a plain digest is enough: there is nothing to guess slowly. Every
//! comparison takes the same time whatever the bytes are. One role exists so far; roles on key prefixes join
//! [`Role`] and [`Grant`] later.

use std::fmt;

use ring::digest;

/// What every token begins with, so that people and secret scanners recognise one.
pub const TOKEN_PREFIX: &str = "krita_";

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 512;

/// Random bytes in a token.
pub const TOKEN_RANDOM_BYTES: usize = 32;

/// A token's text. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token from random bytes, which must be unguessable.
    pub fn generate(random: &[u8; TOKEN_RANDOM_BYTES]) -> Self {
        let mut text = String::with_capacity(TOKEN_PREFIX.len() + TOKEN_RANDOM_BYTES.div_ceil(3) * 4);
        text.push_str(TOKEN_PREFIX);
        for chunk in random.chunks(3) {
            push_base64url(chunk, &mut text);
        }
        Self(text)
    }

    /// The text to give to a person, once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What may be stored.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Base64 for URLs (RFC 4648, section 5), without padding: one group of up to three bytes.
fn push_base64url(chunk: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
    for digit in 0..=chunk.len() {
        let position = bits >> (18 - 6 * digit) & 63;
        out.push(char::from(ALPHABET[position as usize]));
    }
}

/// The SHA-256 digest of a token. Equality is constant in time.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token's text.
    pub fn of(token: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_hex(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(InvalidDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(InvalidDigest)?;
            let low = char::from(pair[1]).to_digit(16).ok_or(InvalidDigest)?;
            *byte = (high << 4 | low) as u8; // Two hexadecimal digits.
        }
        Ok(Self(bytes))
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(&other.0).fold(0u8, |sum, (a, b)| sum | (a ^ b));
        // The compiler must not turn the fold into an early exit.
        std::hint::black_box(difference) == 0
    }
}

impl Eq for TokenDigest {}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(hidden)")
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a token digest is 64 hexadecimal digits")]
pub struct InvalidDigest;

/// What a token allows. Roles on key prefixes come later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Everything.
    Admin,
}

/// A token that the node knows, and what it allows.
#[derive(Clone, Debug)]
pub struct Grant {
    /// A name for logs; never the token.
    pub name: String,
    /// The token's digest.
    pub digest: TokenDigest,
    /// What it allows.
    pub role: Role,
}

/// Why a client is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    /// The hello carried no token.
    #[error("no token given")]
    Missing,
    /// The token is not one that this node knows.
    #[error("the token is not known here")]
    Unknown,
}

/// Checks tokens.
#[derive(Clone, Debug)]
pub struct Authenticator {
    mode: Mode,
}

#[derive(Clone, Debug)]
enum Mode {
    Open,
    Tokens(Vec<Grant>),
}

impl Authenticator {
    /// Lets everyone do everything: only for `insecure: true` without a token.
    pub fn open() -> Self {
        Self { mode: Mode::Open }
    }

    /// Lets in who holds one of these tokens.
    pub fn with_grants(grants: Vec<Grant>) -> Self {
        Self { mode: Mode::Tokens(grants) }
    }

    /// Lets in who holds the one token of `krita.yaml`, as admin.
    pub fn with_admin_token(digest: TokenDigest) -> Self {
        Self::with_grants(vec![Grant { name: "admin".to_owned(), digest, role: Role::Admin }])
    }

    /// What the holder of `token` may do. Compares with every known token in constant time, so that neither
    /// the time nor the answer tells how close a guess was.
    ///
    /// # Errors
    /// The client is not let in.
    pub fn check(&self, token: &str) -> Result<Role, AuthError> {
        let grants = match &self.mode {
            Mode::Open => return Ok(Role::Admin),
            Mode::Tokens(grants) => grants,
        };
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Unknown);
        }
        let digest = TokenDigest::of(token);
        let found = grants
            .iter()
            .fold(None, |found, grant| if grant.digest == digest { Some(grant.role) } else { found });
        found.ok_or(AuthError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_random_bytes_in_base64url_behind_the_prefix() {
        let token = Token::generate(&[0xfb; 32]);
        assert_eq!(token.reveal(), "krita_-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s");
        assert_eq!(token.reveal().len(), TOKEN_PREFIX.len() + 43);
        assert_ne!(Token::generate(&[1; 32]), Token::generate(&[2; 32]));
    }

    #[test]
    fn digests_are_sha_256_and_survive_hex() {
        let digest = TokenDigest::of("abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_hex(), hex);
        assert_eq!(TokenDigest::from_hex(hex), Ok(digest));
        assert_eq!(TokenDigest::from_hex(&hex.to_uppercase()), Ok(digest));
        let accented = "é".repeat(32);
        for wrong in ["", "ab", &hex[1..], &format!("{hex}0"), &hex.replace('b', "g"), accented.as_str()] {
            assert_eq!(TokenDigest::from_hex(wrong), Err(InvalidDigest), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_known_token_is_let_in() {
        let token = Token::generate(&[7; 32]);
        let authenticator = Authenticator::with_admin_token(token.digest());
        assert_eq!(authenticator.check(token.reveal()), Ok(Role::Admin));
        assert_eq!(authenticator.check(""), Err(AuthError::Missing));
        assert_eq!(authenticator.check("krita_"), Err(AuthError::Unknown));
        assert_eq!(authenticator.check(&token.reveal()[..48]), Err(AuthError::Unknown));
        assert_eq!(authenticator.check(&"x".repeat(TOKEN_BYTES_MAX + 1)), Err(AuthError::Unknown));
        assert_eq!(Authenticator::open().check(""), Ok(Role::Admin));
        assert_eq!(Authenticator::with_grants(Vec::new()).check("x"), Err(AuthError::Unknown));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let token = Token::generate(&[7; 32]);
        let shown =
            format!("{token:?} {:?} {:?}", token.digest(), Authenticator::with_admin_token(token.digest()));
        assert!(!shown.contains(token.reveal()) && !shown.contains(&token.digest().to_hex()));
    }
}
