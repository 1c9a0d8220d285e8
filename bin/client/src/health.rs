//! Asks members how they are, and prints what they say.

use std::io::Write;

use kritaclient::{Error, MemberHealth};

use crate::connection::{ConnectionArguments, connect};
use crate::failure::Failure;
use crate::print::{self, Output};

/// Prints how the named node is, or all members of its cluster.
///
/// # Errors
/// A member is not healthy, or refused to say.
pub fn check(
    connection: &ConnectionArguments,
    all: bool,
    output: Output,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let members = ask(connection, all)?;
    print::health(out, output, &members)?;
    judge(&members)
}

/// How members that have been printed end the command.
///
/// # Errors
/// A member is not healthy, or refused to say.
pub fn judge(members: &[MemberHealth]) -> Result<(), Failure> {
    if let Some(refused) = members.iter().find_map(refusal) {
        return Err(refused.clone().into());
    }
    let all_healthy = !members.is_empty() && members.iter().all(print::is_healthy);
    if all_healthy { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// How the named node is, or all members of its cluster. A node that is not reached is among them.
pub(crate) fn ask(connection: &ConnectionArguments, all: bool) -> Result<Vec<MemberHealth>, Failure> {
    let address = connection.address();
    match connect(connection) {
        Ok(client) if all => Ok(client.health()?),
        Ok(client) => Ok(vec![member(&address, client.node_status(&address))?]),
        Err(Failure::Krita(error)) => Ok(vec![member(&address, Err(error))?]),
        Err(other) => Err(other),
    }
}

/// One node asked directly. Only what says something of its health is its state; the rest is the caller's error.
fn member(
    address: &str,
    status: Result<kritaclient::v1::NodeStatusReply, Error>,
) -> Result<MemberHealth, Failure> {
    if let Err(error) = &status
        && !matches!(error, Error::Unavailable(_))
    {
        return Err(error.clone().into());
    }
    let node = status.as_ref().ok().and_then(|status| status.node.clone()).unwrap_or_default();
    Ok(MemberHealth {
        node_number: node.node_number,
        node_id: node.node_id,
        address: address.to_owned(),
        status,
    })
}

/// A member that refused the token says nothing of its health.
fn refusal(member: &MemberHealth) -> Option<&Error> {
    member.status.as_ref().err().filter(|error| matches!(error, Error::Denied(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kritaclient::ErrorCode;

    #[test]
    fn a_refused_token_is_no_statement_about_health() {
        let denied = Error::new(ErrorCode::Unauthenticated, "who are you");
        assert!(matches!(member("a", Err(denied)), Err(Failure::Krita(Error::Denied(_)))));
        let gone = Error::new(ErrorCode::Unavailable, "no route");
        assert!(member("a", Err(gone)).is_ok_and(|member| !print::is_healthy(&member)));
    }
}
